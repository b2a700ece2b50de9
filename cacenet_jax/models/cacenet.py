"""CACE-Net: backbone, individual head, correspondence graph and conditional head as one Linen module.

Legend: B images, H x W positions of a map (N = H W), D channels, F embedding size, I training identities, R x C pairs
of target images u (rows) and contextual images v (columns).
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.models.clues import Clues, clue_distance, clue_grid, image_clues
from cacenet_jax.models.graph import Kind
from cacenet_jax.models.heads import ConditionalHead, Embedded, EmbeddingHead, normalise
from cacenet_jax.models.pair_grid import coefficients, encoded_grid, plan
from cacenet_jax.models.pairs import ImageTerms, image_terms, neighbours_both


class PairTerms(NamedTuple):
    """What the pair stage needs of one image; computed once per image.

    Attributes:
        graph: for the graph convolution.
        clues: for the clue distance; None in a model without it.
    """

    graph: ImageTerms
    clues: Clues | None


class PairGrid(NamedTuple):
    """The conditional embeddings of a grid of pairs, R target images x C contextual images.

    Attributes:
        conditional: f(u|v) and its logits, (R, C, F) and (R, C, I).
        clues: clue distance of each pair, (R, C); None in a model without it.
        positive_intra: share of positive affinities within images, scalar.
        positive_cross: share of positive affinities across images, scalar.
        degree: mean degree of a node in a pair's graph, scalar.
    """

    conditional: Embedded
    clues: Array | None
    positive_intra: Array
    positive_cross: Array
    degree: Array


class Described(NamedTuple):
    """What retrieval keeps of an image.

    Attributes:
        embedding: L2-normalised f(I), (B, F).
        terms: per-image terms of the pair stage, leading axis B; None in a model without the pair stage.
    """

    embedding: Array
    terms: PairTerms | None


class CACENet(nn.Module):
    """The whole network.

    Attributes:
        backbone: module from images (B, H', W', 3) to maps (B, H, W, D).
        num_identities: I, classes of the training set.
        embed_dim: F.
        pairs: whether the pair stage exists; without it this is the individual baseline of table 1.
        kind: "discrepancy" (equation 7) or "normal" (equation 6).
        filters: "tied" (equation 7) or "untied" (equation 5).
        keys: what affinities are computed from: the map ("raw", the paper); its L2-normalised nodes ("l2"); its nodes
            standardised per channel by a batch norm without scale and shift ("standardised"), whose affinities start
            with both signs; or those normalised too ("correlation"), whose affinities are correlations less a learned
            threshold, so that a node starts with few neighbours.
        threshold: initial threshold of "correlation".
        clue_weight: share of the clue distance in the distance of a pair; 0, the paper's own distance, leaves it out.
        pair_memory_mib: memory of the training grid's temporaries on a device; past it the grid is cut into blocks that are
            computed again in the backward pass. Maps, their gradients and arrays of B x B x F and B x B x I do not count.
        dtype: compute type; parameters, statistics, degrees, embeddings and logits are float32.
        axis_name: device axis for collectives in training, None on one device.
    """

    backbone: nn.Module
    num_identities: int
    embed_dim: int = 768
    pairs: bool = True
    kind: Kind = "discrepancy"
    filters: Literal["tied", "untied"] = "tied"
    keys: Literal["raw", "l2", "standardised", "correlation"] = "raw"
    threshold: float = 0.3
    clue_weight: float = 0.0
    pair_memory_mib: float = 1024.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        """Creates the parts; w and w' are kept in units of 1/D, so that 1 makes an affinity a mean over channels."""
        shared = {"embed_dim": self.embed_dim, "num_identities": self.num_identities, "dtype": self.dtype}
        shared["axis_name"] = self.axis_name
        self.individual_head = EmbeddingHead(**shared)
        if self.pairs:
            channels = (self.backbone.channels,)
            self.conditional_head = ConditionalHead(*channels, kind=self.kind, filters=self.filters, **shared)
            self.intra_weight = self.param("intra_weight", nn.initializers.ones, channels)
            self.cross_weight = self.param("cross_weight", nn.initializers.ones, channels)
            if self.keys == "correlation":
                start = nn.initializers.constant(self.threshold)
                self.intra_threshold = self.param("intra_threshold", start, (1,))
                self.cross_threshold = self.param("cross_threshold", start, (1,))
            if self.keys in ("standardised", "correlation"):
                self.key_norm = nn.BatchNorm(
                    use_bias=False,
                    use_scale=False,
                    momentum=0.9,
                    epsilon=1e-5,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                )

    def maps(self, images_BHWC: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B h w D"]:
        """Feature maps of normalised images."""
        return self.backbone(images_BHWC, train=train)

    def individual(self, maps_BHWD: Float[Array, "B h w D"], *, train: bool) -> Embedded:
        """f(I): global average pooling and the individual head."""
        wide = jnp.promote_types(maps_BHWD.dtype, jnp.float32)
        return self.individual_head(maps_BHWD.mean(axis=(1, 2), dtype=wide), train=train)

    def _keys(self, nodes_BND: Float[Array, "B N D"], train: bool) -> Float[Array, "B N E"] | None:
        """What affinities are computed from; None for the nodes themselves."""
        if self.keys == "raw":
            return None
        if self.keys == "l2":
            return normalise(nodes_BND).astype(nodes_BND.dtype) * nodes_BND.shape[-1] ** 0.5
        keys_BND = self.key_norm(nodes_BND, use_running_average=not train)
        if self.keys == "standardised":
            return keys_BND
        keys_BND = normalise(keys_BND).astype(nodes_BND.dtype) * nodes_BND.shape[-1] ** 0.5
        # One more channel, constant and weighted by minus the threshold.
        return jnp.concatenate([keys_BND, jnp.ones_like(keys_BND[..., :1])], axis=-1)

    def _clues(self, nodes_BND: Float[Array, "B N D"]) -> Clues | None:
        if self.clue_weight == 0:
            return None
        return image_clues(self.individual_head.embed_nodes(nodes_BND).astype(self.dtype))

    def terms(self, maps_BHWD: Float[Array, "B h w D"], *, train: bool) -> PairTerms:
        """Per-image terms of the pair stage, leading axis B."""
        nodes_BND = _nodes(maps_BHWD)
        weight_E = self._weight("intra")
        pair = jax.vmap(lambda nodes, keys: image_terms(nodes, weight_E, keys))
        return PairTerms(pair(nodes_BND, self._keys(nodes_BND, train)), self._clues(nodes_BND))

    def _weight(self, which: Literal["intra", "cross"]) -> Array:
        """The diagonal of W or W' over the channels of the keys."""
        weight_D = getattr(self, f"{which}_weight")
        weight_D = weight_D / weight_D.shape[0]
        if self.keys == "correlation":
            weight_D = jnp.concatenate([weight_D, -getattr(self, f"{which}_threshold")])
        return weight_D

    def grid(self, maps_BHWD: Float[Array, "B h w D"], *, train: bool) -> PairGrid:
        """Conditional embeddings, and clue distances, of every image given every image.

        Rows of the grid are these images; columns are the images of all devices along `axis_name`, in training.
        """
        nodes_BND = _nodes(maps_BHWD)
        rows, num_nodes, channels = nodes_BND.shape
        if self.is_initializing():  # the heads make their parameters when they are called
            self.conditional_head(nodes_BND[:, 0], nodes_BND[:, 0], train=train)
        axis_name = self.axis_name if train and not self.is_initializing() else None
        columns = rows * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        keys_BNE = self._keys(nodes_BND, train)
        keys_BNE = nodes_BND if keys_BNE is None else keys_BNE
        axis_name = axis_name if columns > rows else None
        share = 1.0 if self.clue_weight == 0 else 0.5  # the clue distances take the rest
        itemsize = keys_BNE.dtype.itemsize
        how = plan(rows, columns, num_nodes, channels, self.pair_memory_mib, itemsize, axis_name, share)
        found = coefficients(how, keys_BNE, self._weight("intra"), self._weight("cross"))
        encoded = encoded_grid(how, nodes_BND, found, self.conditional_head.encoder(rows * columns))
        clues = self._clues(nodes_BND)
        if clues is not None:
            others = clues
            if axis_name is not None:
                others = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), clues)
            block = int(share * self.pair_memory_mib * 2**20) // (12 * rows * num_nodes**2)
            clues = clue_grid(clues, others, max(block, 1))
        conditional = self.conditional_head.finish(encoded, train=train)
        return PairGrid(conditional, clues, found.positive_intra, found.positive_cross, found.degree)

    def describe(self, maps_BHWD: Float[Array, "B h w D"]) -> Described:
        """What retrieval keeps of each image (test mode)."""
        embedding_BF = normalise(self.individual(maps_BHWD, train=False).embedding)
        return Described(embedding_BF, self.terms(maps_BHWD, train=False) if self.pairs else None)

    def pair_distance(self, u: PairTerms, v: PairTerms) -> Float[Array, ""]:
        """Distance of two images that were looked at together (section 3.5), 0 to 2.

        1 - cos(f(u|v), f(v|u)), half the squared distance that the pair triplet trains; with a clue_weight, mixed with
        the clue distance.
        """
        near_u_D, near_v_D = neighbours_both(u.graph, v.graph, self._weight("cross"))
        own_2D = jnp.stack([u.graph.nodes_ND, v.graph.nodes_ND]).mean(axis=1, dtype=near_u_D.dtype)
        embedded = self.conditional_head(own_2D, jnp.stack([near_u_D, near_v_D]), train=False)
        embedding_2F = normalise(embedded.embedding)
        distance = 1 - embedding_2F[0] @ embedding_2F[1]
        if u.clues is None:
            return distance
        return (1 - self.clue_weight) * distance + self.clue_weight * clue_distance(u.clues, v.clues)

    def __call__(self, images_BHWC: Float[Array, "B H W 3"], *, train: bool) -> tuple[Embedded, PairGrid | None]:
        """Individual embeddings of the images and, with the pair stage, the grid of pairs.

        In training the rows of the grid are this device's images, the columns those of all devices along `axis_name`.
        """
        maps_BHWD = self.maps(images_BHWC, train=train)
        individual = self.individual(maps_BHWD, train=train)
        if not self.pairs:
            return individual, None
        return individual, self.grid(maps_BHWD, train=train)


def _nodes(maps_BHWD: Float[Array, "B h w D"]) -> Float[Array, "B N D"]:
    return maps_BHWD.reshape(maps_BHWD.shape[0], -1, maps_BHWD.shape[-1])
