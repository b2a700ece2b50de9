"""CACE-Net: backbone, individual head, correspondence graph and conditional head as one Linen module.

Legend: B images, H x W positions of a map (N = H W), D channels, E channels of keys, F embedding size, I training
identities, R x C pairs of target images u (rows) and contextual images v (columns).
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from cacenet_jax.models.graph import Kind
from cacenet_jax.models.heads import ConditionalHead, Embedded, EmbeddingHead, normalise
from cacenet_jax.models.outputs import Described, PairGrid, PairTerms
from cacenet_jax.models.pair_stages.conditional.alignment import LEARNED, Alignment, node_parts, rule_keys
from cacenet_jax.models.pair_stages.conditional.batch_grid import coefficients, encoded_grid
from cacenet_jax.models.pair_stages.conditional.clues import Clues, clue_distance, image_clues
from cacenet_jax.models.pair_stages.conditional.memory_plan import plan
from cacenet_jax.models.pair_stages.conditional.pair import image_terms, neighbours_both
from cacenet_jax.models.pair_stages.evidence import Judge, LocalEvidence, evidence, evidence_distance
from cacenet_jax.models.pair_stages.grids import distance_grid
from cacenet_jax.models.pair_stages.keypoints import key_point_distance, key_point_grid, key_points
from cacenet_jax.models.pair_stages.released import BottleneckGraph, Encoder, bottleneck_maps
from cacenet_jax.models.pair_stages.released import encoded_grid as bottleneck_grid
from cacenet_jax.models.pooling import GeneralisedMean, generalised_mean


class CACENet(nn.Module):
    """The whole network.

    Attributes:
        backbone: module from images (B, H', W', 3) to maps (B, H, W, D).
        num_identities: I, classes of the training set.
        embed_dim: F.
        pairs: whether the pair stage exists; without it this is the individual baseline of table 1.
        pair_score: what tells two images apart: the distance of their conditional embeddings ("conditional"), or, without
            a graph convolution, that of their key-point pairs ("keypoints", table 1, second row) or local evidence
            ("evidence", ours).
        evidence_channels: channels of a region that local evidence compares.
        frozen: the backbone and the individual head stay as they are, and the pair stage is trained on maps as retrieval
            sees them: running statistics, averaged with the map of the mirror image.
        alignment: which positions are neighbours, see alignment.py; "attention" is the paper's.
        neighbours: K of the "similarity" alignment.
        kind: "discrepancy" (equation 7) or "normal" (equation 6).
        filters: "tied" (equation 7), "untied" (equation 5) or "residual", the graph of bottlenecks (bottleneck.py).
        keys: what affinities are computed from: the map ("raw", the paper); its L2-normalised nodes ("l2"); its nodes
            standardised per channel by a batch norm without scale and shift ("standardised"), whose affinities start
            with both signs; or those normalised too ("correlation"), whose affinities are correlations less a learned
            threshold, so that a node starts with few neighbours. With residual filters a "bottleneck" of each node.
        threshold: initial threshold of "correlation".
        clue_weight: share of the clue distance in the distance of a pair; 0, the paper's own distance, leaves it out.
        pooling: of a map: "mean", or "gem", the generalised mean with a learned exponent.
        shared_encoder: whether the individual head encodes conditional maps too; with residual filters.
        relu: whether classifiers see embeddings after a ReLU.
        dropout: share of what classifiers see that is 0 in training.
        pair_memory_mib: memory of the training grid's temporaries on a device; past it the grid is cut into blocks that are
            computed again in the backward pass. Maps, their gradients and arrays of B x B x F and B x B x I do not count.
        dtype: compute type; parameters, statistics, degrees, embeddings and logits are float32.
        axis_name: device axis for collectives in training, None on one device.
    """

    backbone: nn.Module
    num_identities: int
    embed_dim: int = 768
    pairs: bool = True
    pair_score: Literal["conditional", "keypoints", "evidence"] = "conditional"
    evidence_channels: int = 64
    frozen: bool = False
    alignment: Alignment = "attention"
    neighbours: int = 1
    kind: Kind = "discrepancy"
    filters: Literal["tied", "untied", "residual"] = "tied"
    keys: Literal["raw", "l2", "standardised", "correlation", "bottleneck"] = "raw"
    threshold: float = 0.3
    clue_weight: float = 0.0
    pooling: Literal["mean", "gem"] = "mean"
    shared_encoder: bool = False
    relu: bool = False
    dropout: float = 0.0
    pair_memory_mib: float = 1024.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        """Creates the parts; w and w' are kept in units of 1/D, so that 1 makes an affinity a mean over channels."""
        shared = {"embed_dim": self.embed_dim, "num_identities": self.num_identities, "dtype": self.dtype}
        shared |= {"axis_name": self.axis_name, "relu": self.relu, "dropout": self.dropout}
        self.individual_head = EmbeddingHead(**shared, shared=self.residual and self.shared_encoder)
        if self.pooling == "gem":
            self.gemp = GeneralisedMean()
        if self.pairs:
            channels = (self.backbone.channels,)
            if self.residual:
                self.pair_graph = BottleneckGraph(*channels, dtype=self.dtype)
                if not self.shared_encoder:
                    self.conditional_head = EmbeddingHead(**shared)
            elif self.pair_score == "conditional":
                self.conditional_head = ConditionalHead(*channels, kind=self.kind, filters=self.filters, **shared)
            if self.pair_score == "evidence":
                self.local_evidence = LocalEvidence(self.evidence_channels, self.axis_name)
            for which in self._learned:
                setattr(self, f"{which}_weight", self.param(f"{which}_weight", nn.initializers.ones, channels))
                if self.keys == "correlation":
                    start = nn.initializers.constant(self.threshold)
                    setattr(self, f"{which}_threshold", self.param(f"{which}_threshold", start, (1,)))
            if self._learned and self.keys in ("standardised", "correlation"):
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

    def mirrored_maps(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """In test mode the map of an image averaged with that of its mirror image, mirrored back so that positions match."""
        mirrored_BHWD = self.maps(images_BHWC[:, :, ::-1], train=False)
        return (self.maps(images_BHWC, train=False) + mirrored_BHWD[:, :, ::-1]) / 2

    def individual(self, maps_BHWD: Float[Array, "B h w D"], *, train: bool) -> Embedded:
        """f(I): global pooling and the individual head."""
        if self.pooling == "gem":
            return self.individual_head(generalised_mean(_nodes(maps_BHWD), self.gemp()), train=train)
        wide = jnp.promote_types(maps_BHWD.dtype, jnp.float32)
        return self.individual_head(maps_BHWD.mean(axis=(1, 2), dtype=wide), train=train)

    @property
    def residual(self) -> bool:
        """Whether the pair stage is the graph of bottlenecks."""
        return self.pairs and self.pair_score == "conditional" and self.filters == "residual"

    @property
    def _pair_head(self) -> EmbeddingHead:
        """What encodes the maps of the graph of bottlenecks."""
        return self.individual_head if self.shared_encoder else self.conditional_head

    def pair_encoder(self) -> Encoder:
        """What makes an embedding of a map of the graph of bottlenecks, but for the batch norm; of an initialised model."""
        exponent = self.gemp() if self.pooling == "gem" else None
        return Encoder(self.pair_graph.out(), exponent, self._pair_head.kernel.astype(self.dtype))

    @property
    def _learned(self) -> tuple[str, ...]:
        """The blocks of the graph whose weights are learned."""
        if self.pair_score == "evidence" or self.residual:
            return ()
        if self.pair_score == "keypoints":
            return ("cross",)
        return {"attention": ("intra", "cross"), "individual": ("intra",)}.get(self.alignment, ())

    @property
    def nearest(self) -> int:
        """What `alignment.connect` is given."""
        return self.neighbours if self.alignment == "similarity" else 0

    @property
    def image_channels(self) -> int:
        """Channels of an image: three colours and, for the semantic alignment, the label of each pixel's body part."""
        return 4 if self.pairs and self.alignment == "semantic" else 3

    def _keys(
        self, nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None, train: bool
    ) -> Float[Array, "B N E"] | None:
        """What affinities are computed from; None for the nodes themselves."""
        if self.alignment not in LEARNED:
            return rule_keys(self.alignment, nodes_BND, parts_BN)
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

    def parts(self, images_BHWC: Shaped[Array, "B H W C"], height: int, width: int) -> Int[Array, "B N"] | None:
        """Body part of each position of a height x width map; None where the images carry no labels."""
        return node_parts(images_BHWC[..., 3], height, width) if images_BHWC.shape[-1] > 3 else None

    def terms(
        self, maps_BHWD: Float[Array, "B h w D"], parts_BN: Int[Array, "B N"] | None = None, *, train: bool
    ) -> PairTerms:
        """Per-image terms of the pair stage, leading axis B."""
        nodes_BND = _nodes(maps_BHWD)
        if self.pair_score == "evidence":
            return PairTerms(None, None, regions=self.local_evidence(nodes_BND, train=train)[0])
        if self.residual:
            return PairTerms(None, None, bottleneck=self.pair_graph(nodes_BND))
        keys_BNE = self._keys(nodes_BND, parts_BN, train)
        if self.pair_score == "keypoints":
            return PairTerms(None, None, key_points(nodes_BND, keys_BNE))
        weight_E = self.weight("intra", nodes_BND if keys_BNE is None else keys_BNE)
        pair = jax.vmap(lambda nodes, keys: image_terms(nodes, weight_E, keys, self.nearest))
        return PairTerms(pair(nodes_BND, keys_BNE), self._clues(nodes_BND))

    def weight(self, which: Literal["intra", "cross"], keys: Array) -> Float[Array, "E"]:
        """The diagonal of W or W' over the channels of the keys (the last axis)."""
        if which not in self._learned:  # rules weigh 1; in the individual graph nothing crosses
            return jnp.full(keys.shape[-1], self.alignment not in LEARNED, keys.dtype)
        weight_D = getattr(self, f"{which}_weight")
        weight_D = weight_D / weight_D.shape[0]
        if self.keys == "correlation":
            weight_D = jnp.concatenate([weight_D, -getattr(self, f"{which}_threshold")])
        return weight_D

    def grid(
        self, maps_BHWD: Float[Array, "B h w D"], parts_BN: Int[Array, "B N"] | None = None, *, train: bool
    ) -> PairGrid:
        """Conditional embeddings, and clue distances, of every image given every image; or key-point distances or evidence.

        Rows of the grid are these images; columns are the images of all devices along `axis_name`, in training.

        Args:
            maps_BHWD: feature maps.
            parts_BN: body part of each position, for the semantic alignment.
            train: batch statistics and updates, or running statistics.
        """
        nodes_BND = _nodes(maps_BHWD)
        rows, num_nodes, channels = nodes_BND.shape
        axis_name = self.axis_name if train and not self.is_initializing() else None
        columns = rows * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        axis_name = axis_name if columns > rows else None
        if self.pair_score == "evidence":
            regions, judge = self.local_evidence(nodes_BND, train=train)
            column = 16 * rows * num_nodes * (num_nodes + 4 * self.evidence_channels)  # bytes, with the gradient's
            block = max(int(self.pair_memory_mib * 2**20) // column, 1)
            found = distance_grid(lambda u, v: evidence(judge, u, v), regions, block, axis_name)
            return PairGrid(None, None, None, None, None, None, found)
        if self.residual:
            return self._bottleneck_grid(nodes_BND, axis_name, train)
        keys_BNE = self._keys(nodes_BND, parts_BN, train)
        share = 1.0 if self.clue_weight == 0 else 0.5  # the clue distances take the rest
        # Bytes of a pair of positions, with what its backward pass holds: key points have two products.
        each = 24 if self.pair_score == "keypoints" else 12
        block = max(int(share * self.pair_memory_mib * 2**20) // (each * rows * num_nodes**2), 1)
        if self.pair_score == "keypoints":
            points = key_points(nodes_BND, keys_BNE)
            found = key_point_grid(points, self.weight("cross", points.keys_NE), block, axis_name)
            return PairGrid(None, None, found.distance, None, found.positive.mean(), None)
        if self.is_initializing():  # the heads make their parameters when they are called
            self.conditional_head(nodes_BND[:, 0], nodes_BND[:, 0], train=train)
        keys_BNE = nodes_BND if keys_BNE is None else keys_BNE
        how = plan(
            rows, columns, num_nodes, channels, self.pair_memory_mib, keys_BNE.dtype.itemsize, axis_name, share
        )._replace(nearest=self.nearest)
        found = coefficients(how, keys_BNE, self.weight("intra", keys_BNE), self.weight("cross", keys_BNE))
        encoded = encoded_grid(how, nodes_BND, found, self.conditional_head.encoder(rows * columns))
        clues = self._clues(nodes_BND)
        if clues is not None:
            clues = distance_grid(clue_distance, clues, block, axis_name)
        conditional = self.conditional_head.finish(encoded, train=train)
        return PairGrid(conditional, clues, None, found.positive_intra, found.positive_cross, found.degree)

    def _bottleneck_grid(self, nodes_BND: Array, axis_name: str | None, train: bool) -> PairGrid:
        head = self._pair_head
        if self.is_initializing():  # the head makes its parameters when it is called
            head(nodes_BND[:, 0], train=train)
        terms = self.pair_graph(nodes_BND)
        found = bottleneck_grid(self.pair_encoder(), terms, int(self.pair_memory_mib * 2**20), axis_name)
        finish = head.finish_pairs if self.shared_encoder else head.finish
        positive_intra = (terms.intra_NN > 0).mean(dtype=jnp.float32)
        conditional = finish(found.encoded, train=train)
        return PairGrid(conditional, None, None, positive_intra, found.positive_cross.mean(), found.degree.mean())

    def judge(self) -> Judge:
        """What judges a pair of images, in an initialised model of local evidence."""
        return Judge(**{name: self.local_evidence.variables["params"][name] for name in Judge._fields})

    def describe(self, maps_BHWD: Float[Array, "B h w D"], parts_BN: Int[Array, "B N"] | None = None) -> Described:
        """What retrieval keeps of each image (test mode)."""
        embedding_BF = normalise(self.individual(maps_BHWD, train=False).embedding)
        return Described(embedding_BF, self.terms(maps_BHWD, parts_BN, train=False) if self.pairs else None)

    def pair_distance(self, u: PairTerms, v: PairTerms) -> Float[Array, ""]:
        """Distance of two images that were looked at together (section 3.5), 0 to 2; of local evidence, any number.

        1 - cos(f(u|v), f(v|u)), half the squared distance that the pair triplet trains; with a clue_weight, mixed with
        the clue distance. With pair_score "keypoints" that of the key-point pairs, with "evidence" that of the local
        evidence.
        """
        if u.regions is not None:
            return evidence_distance(self.judge(), u.regions, v.regions)
        if u.points is not None:
            return key_point_distance(u.points, v.points, self.weight("cross", u.points.keys_NE)).distance
        if u.bottleneck is not None:
            encoder = self.pair_encoder()
            maps = bottleneck_maps(encoder.out_ED, u.bottleneck, v.bottleneck)
            pooled_2D = jnp.stack([generalised_mean(map_ND, encoder.exponent) for map_ND in maps])
            embedding_2F = normalise(self._pair_head(pooled_2D, train=False).embedding)
            return 1 - embedding_2F[0] @ embedding_2F[1]
        keys_NE = u.graph.nodes_ND if u.graph.keys_NE is None else u.graph.keys_NE
        weight_E = self.weight("cross", keys_NE)
        near_u_D, near_v_D = neighbours_both(u.graph, v.graph, weight_E, self.nearest)
        own_2D = jnp.stack([u.graph.nodes_ND, v.graph.nodes_ND]).mean(axis=1, dtype=near_u_D.dtype)
        embedded = self.conditional_head(own_2D, jnp.stack([near_u_D, near_v_D]), train=False)
        embedding_2F = normalise(embedded.embedding)
        distance = 1 - embedding_2F[0] @ embedding_2F[1]
        if u.clues is None:
            return distance
        return (1 - self.clue_weight) * distance + self.clue_weight * clue_distance(u.clues, v.clues)

    def __call__(self, images_BHWC: Float[Array, "B H W C"], *, train: bool) -> tuple[Embedded, PairGrid | None]:
        """Individual embeddings of the images and, with the pair stage, the grid of pairs.

        In training the rows of the grid are this device's images, the columns those of all devices along `axis_name`.
        Images have `image_channels` channels.
        """
        if self.frozen:
            maps_BHWD = jax.lax.stop_gradient(self.mirrored_maps(images_BHWC[..., :3]))
        else:
            maps_BHWD = self.maps(images_BHWC[..., :3], train=train)
        individual = self.individual(maps_BHWD, train=train and not self.frozen)
        if self.frozen:  # what is not applied must not count in the norm of the gradient, nor where that is clipped
            individual = jax.lax.stop_gradient(individual)
        if not self.pairs:
            return individual, None
        return individual, self.grid(maps_BHWD, self.parts(images_BHWC, *maps_BHWD.shape[1:3]), train=train)


def _nodes(maps_BHWD: Float[Array, "B h w D"]) -> Float[Array, "B N D"]:
    return maps_BHWD.reshape(maps_BHWD.shape[0], -1, maps_BHWD.shape[-1])
