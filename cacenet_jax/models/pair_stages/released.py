"""Graph of the authors' released recipe, with bottleneck affinities, no self-loops and a residual connection.

    Y = X W_y / (|X W_y| + 1e-12) per node,   S_u = ReLU(Y_u Y_u^T) with zero diagonal,   T_uv = ReLU(Y_u Y_v^T)
    d = A 1,   r = d^-1/2, or 1 where d <= 1e-3; no gradient flows through r
    map(u|v) = X_u + [ R (D - A) R G ]_u W_o,   G = X W_g,   W_o = 0 at initialisation

where A is the graph of both images as in graph.py, R = diag(r), D = diag(d) in this formula only, and W_y, W_g and W_o
are 1x1 convolutions without bias. W_y and W_g map D to D/16 channels and W_o maps back. The cost of a pair is its block
T (N^2 D/16) plus the product with W_o (N D^2/16). For 192 nodes and 2048 channels, this is about three quarters of the
cost of the block T in the paper (N^2 D). The subsequent pooling is nonlinear, so the map of every pair has to be built;
only a few maps are in memory at a time.

Legend: u target image, v contextual image, N and M nodes, D channels, E = D / 16, F embedding size, R local images
(rows), C images of all devices (columns).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.distributed.collectives import all_gather
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses
from cacenet_jax.models.backbones.non_local import REDUCTION, torch_uniform
from cacenet_jax.models.heads import Embedded, EmbeddingHead
from cacenet_jax.models.pair_stages.base import ISOLATED, UNCONNECTED, Alarm, Individual, PairView
from cacenet_jax.models.pair_stages.embedding_pairs import EmbeddingPairStage
from cacenet_jax.models.pair_stages.grids import map_grid
from cacenet_jax.models.pooling import generalised_mean

_NORM = 1e-12  # added to norms
_ISOLATED = 1e-3  # smaller or equal degrees are treated as 1
_MAPS_AT_ONCE = 8  # number of candidates per block in retrieval


class BottleneckTerms(NamedTuple):
    """Per-image terms of the graph.

    Attributes:
        nodes_ND: feature map, one row per position.
        keys_NE: Y, the affinity keys.
        values_NE: G, the features propagated by the graph.
        intra_NN: S with zero diagonal, in at least float32.
        degree_N: row sums of S.
    """

    nodes_ND: Array
    keys_NE: Array
    values_NE: Array
    intra_NN: Array
    degree_N: Array


class Encoder(NamedTuple):
    """Constants for computing and encoding conditional maps, without the batch norm.

    Attributes:
        out_ED: W_o.
        exponent: pooling exponent p, or None for mean pooling.
        kernel_DF: kernel of the 1x1 convolution.
    """

    out_ED: Array
    exponent: Array | None
    kernel_DF: Array


class EncodedGrid(NamedTuple):
    """Encoded pairs of a grid, with graph diagnostics that carry no gradient.

    Attributes:
        encoded: pooled conditional maps after the 1x1 convolution, shape (R, C, F).
        positive_cross: fraction of positive affinities across images, shape (R, C).
        degree: mean degree of u's nodes, shape (R, C).
    """

    encoded: Array
    positive_cross: Array
    degree: Array


def unit(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """Return x / (|x| + 1e-12) in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    return x / (jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0) + _NORM)


def root_of(degree_N: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Return d^-1/2, or 1 where the degree is at most 1e-3, without gradient."""
    degree_N = jax.lax.stop_gradient(degree_N)
    some_N = degree_N > _ISOLATED
    return jnp.where(some_N, jax.lax.rsqrt(jnp.where(some_N, degree_N, 1)), 1)


class BottleneckGraph(nn.Module):
    """The bottleneck layers W_y, W_g and W_o, named `y`, `g` and `o`.

    Attributes:
        channels: D, number of channels of a feature map.
        dtype: compute dtype of the products; norms, affinities and degrees are in at least float32.
    """

    channels: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Create the bottleneck layers."""
        inside = max(self.channels // REDUCTION, 1)
        self.y, self.g = (
            nn.Dense(inside, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform) for _ in range(2)
        )
        self.o = nn.Dense(self.channels, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def __call__(self, nodes_BND: Float[Array, "B N D"]) -> BottleneckTerms:
        """Compute the terms of each image, leading axis B."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        nodes_BND = nodes_BND.astype(self.dtype)
        keys_BNE, values_BNE = unit(self.y(nodes_BND)).astype(self.dtype), self.g(nodes_BND)
        if self.is_initializing():  # a layer creates its parameters when called
            self.o(values_BNE)
        score_BNN = jnp.einsum("bne,bme->bnm", keys_BNE, keys_BNE, preferred_element_type=wide)
        others_NN = 1 - jnp.eye(nodes_BND.shape[1], dtype=wide)
        intra_BNN = jax.nn.relu(score_BNN) * others_NN
        return BottleneckTerms(nodes_BND, keys_BNE, values_BNE, intra_BNN, intra_BNN.sum(axis=2))

    def out(self) -> Float[Array, "E D"]:
        """Return W_o of an initialised graph in the compute dtype."""
        return self.o.variables["params"]["kernel"].astype(self.dtype)


def cross_block(u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, "N M"]:
    """Compute T_uv in at least float32."""
    return jax.nn.relu(jnp.einsum("ne,me->nm", u.keys_NE, v.keys_NE, preferred_element_type=u.degree_N.dtype))


def _map(
    out_ED: Array, u: BottleneckTerms, v: BottleneckTerms, cross_NM: Array, degree_u_N: Array, degree_v_M: Array
) -> Array:
    """Compute the conditional map of u given v from the cross block and the degrees."""
    wide = cross_NM.dtype
    root_u_N1, root_v_M1 = root_of(degree_u_N)[:, None], root_of(degree_v_M)[:, None]
    values_u_NE, values_v_ME = u.values_NE.astype(wide), v.values_NE.astype(wide)
    near_NE = u.intra_NN.astype(wide) @ (root_u_N1 * values_u_NE) + cross_NM @ (root_v_M1 * values_v_ME)
    moved_NE = root_u_N1 * (degree_u_N[:, None] * root_u_N1 * values_u_NE - near_NE)
    added_ND = jnp.matmul(moved_NE.astype(out_ED.dtype), out_ED, preferred_element_type=wide)
    return u.nodes_ND.astype(wide) + added_ND


def bottleneck_maps(
    out_ED: Float[Array, "E D"], u: BottleneckTerms, v: BottleneckTerms
) -> tuple[Float[Array, "N D"], Float[Array, "M D"]]:
    """Compute the conditional maps of u given v and of v given u.

    Args:
        out_ED: W_o.
        u: terms of one image.
        v: terms of the other.

    Returns:
        The rows of X + R (D - A) R G W_o for u, shape (N, D), and for v, shape (M, D), in at least float32.

    Source: formulas of the authors' release, https://github.com/TencentYoutuResearch/PersonReID-YouReID (Apache-2.0).
    """
    cross_NM = cross_block(u, v)
    degree_u_N, degree_v_M = u.degree_N + cross_NM.sum(axis=1), v.degree_N + cross_NM.sum(axis=0)
    return (
        _map(out_ED, u, v, cross_NM, degree_u_N, degree_v_M),
        _map(out_ED, v, u, cross_NM.T, degree_v_M, degree_u_N),
    )


def encoded_grid(
    encoder: Encoder, terms: BottleneckTerms, budget_bytes: int, axis_name: str | None = None
) -> EncodedGrid:
    """Pool and encode the conditional maps of all pairs, materialising only a few maps at a time.

    Args:
        encoder: encoder constants.
        terms: terms of the local images, leading axis R.
        budget_bytes: memory budget for the maps held simultaneously in the forward or backward pass. At least one pair
            is computed at a time.
        axis_name: device axis of the rows, or None on a single device.
    """
    columns = all_gather(terms, axis_name)
    nodes, channels = terms.nodes_ND.shape[1:]

    def pair(u: BottleneckTerms, v: BottleneckTerms) -> EncodedGrid:
        cross_NM = cross_block(u, v)
        degree_u_N, degree_v_M = u.degree_N + cross_NM.sum(axis=1), v.degree_N + cross_NM.sum(axis=0)
        map_ND = _map(encoder.out_ED, u, v, cross_NM, degree_u_N, degree_v_M)
        pooled_D = generalised_mean(map_ND, encoder.exponent)
        encoded_F = jnp.matmul(
            pooled_D.astype(encoder.kernel_DF.dtype), encoder.kernel_DF, preferred_element_type=pooled_D.dtype
        )
        positive = (cross_NM > 0).mean(dtype=jnp.float32)
        return EncodedGrid(encoded_F, positive, jax.lax.stop_gradient(degree_u_N.mean()))

    return map_grid(pair, terms, columns, budget_bytes // (4 * (8 * nodes * channels + 6 * nodes * nodes)))


class ReleasedConstants(NamedTuple):
    """Constants of a trained stage, in at least float32.

    Attributes:
        encoder: W_o, the pooling exponent, and the 1x1 convolution with the batch-norm scale folded in.
        bias_F: bias of the batch norm minus the scaled mean.
    """

    encoder: Encoder
    bias_F: Array


class ReleasedGrid(NamedTuple):
    """Outputs for the training grid.

    Attributes:
        conditional: f(u|v) and its logits, shapes (R, C, F) and (R, C, I).
        positive_intra: fraction of positive affinities within images, scalar.
        positive_cross: fraction of positive affinities across images, scalar.
        degree: mean node degree in the pair graphs, scalar.
    """

    conditional: Embedded
    positive_intra: Array
    positive_cross: Array
    degree: Array


class ReleasedStage(EmbeddingPairStage, kw_only=True):
    """Pair stage with the bottleneck graph; see the module docstring.

    Attributes:
        shared_encoder: encode conditional maps with the individual head and a second classifier; if False, use a
            separate head.
    """

    shared_encoder: bool = True

    def setup(self) -> None:
        """Create the graph and, if the encoder is not shared, the conditional head."""
        self.pair_graph = BottleneckGraph(self.channels, dtype=self.dtype)
        if not self.shared_encoder:
            self.conditional_head = EmbeddingHead(
                self.embed_dim, self.num_identities, self.dtype, self.axis_name, self.relu, self.dropout
            )

    @property
    def title(self) -> str:
        """Title of the correspondences in figures."""
        return "correspondence attention"

    @property
    def supports_frozen(self) -> bool:
        """False, because the pooling exponent and, by default, the encoder belong to the individual branch."""
        return False

    @property
    def shares_encoder(self) -> bool:
        """True if the individual head also encodes pairs."""
        return self.shared_encoder

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Graphs without edges and equal embeddings."""
        return (*super().alarms, *UNCONNECTED.values(), ISOLATED)

    def _head(self, individual: Individual) -> EmbeddingHead:
        return individual.head if self.shared_encoder else self.conditional_head

    def _encoder(self, individual: Individual, dtype: Any) -> Encoder:
        """Return the encoder constants of an initialised model, with products in the given dtype."""
        kernel_DF = self._head(individual).kernel
        return Encoder(self.pair_graph.out().astype(dtype), individual.exponent, kernel_DF.astype(dtype))

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> BottleneckTerms:
        """Compute the terms of each image, leading axis B."""
        del parts_BN, individual, train
        return self.pair_graph(nodes_BND)

    def store(self, constants: ReleasedConstants, terms: BottleneckTerms, dtype: Any) -> BottleneckTerms:
        """Cast all terms except the degrees to the storage dtype; nonlinear pooling requires storing whole maps."""
        return super().store(constants, terms, dtype)._replace(degree_N=terms.degree_N)

    def constants(self, individual: Individual) -> ReleasedConstants:
        """Compute the constants, with the inference-mode batch norm folded in."""
        encoder = self._encoder(individual, jnp.promote_types(self.dtype, jnp.float32))
        scale_F, bias_F = self._head(individual).norm_affine()
        return ReleasedConstants(encoder._replace(kernel_DF=encoder.kernel_DF * scale_F), bias_F)

    def distance(self, constants: ReleasedConstants, u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, ""]:
        """Compute the distance between f(u|v) and f(v|u)."""
        maps = bottleneck_maps(constants.encoder.out_ED, u, v)
        pooled_2D = jnp.stack([generalised_mean(map_ND, constants.encoder.exponent) for map_ND in maps])
        embedding_2F = pooled_2D @ constants.encoder.kernel_DF + constants.bias_F
        return self.between(*embedding_2F)

    def distances(self, constants: ReleasedConstants, u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, "C"]:
        """Compute the distances from one image to C others, in blocks of candidates to bound memory."""
        if not isinstance(v.degree_N.shape[0], int):  # exported with a symbolic number of candidates
            return super().distances(constants, u, v)
        return jax.lax.map(lambda v: self.distance(constants, u, v), v, batch_size=_MAPS_AT_ONCE)

    def view(
        self, u: BottleneckTerms, v: BottleneckTerms, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual
    ) -> PairView:
        """Return the cross block and the norms of the conditional map of u given v."""
        del nodes_u_ND, nodes_v_MD
        map_ND = bottleneck_maps(self._encoder(individual, self.dtype).out_ED, u, v)[0]
        return PairView(cross_block(u, v), jnp.linalg.norm(map_ND, axis=-1))

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> ReleasedGrid:
        """Encode every pair, then apply the batch norm to the whole grid."""
        head = self._head(individual)
        if self.is_initializing():  # the head creates its parameters when called
            head(nodes_RND[:, 0], train=train)
        terms = self.terms(nodes_RND, parts_RN, individual, train=train)
        encoder = self._encoder(individual, self.dtype)
        encoded = encoded_grid(encoder, terms, int(self.memory_mib * 2**20), self.grid_axis(len(nodes_RND), train)[0])
        finish = head.finish_pairs if self.shared_encoder else head.finish
        positive_intra = (terms.intra_NN > 0).mean(dtype=jnp.float32)
        conditional = finish(encoded.encoded, train=train)
        return ReleasedGrid(conditional, positive_intra, encoded.positive_cross.mean(), encoded.degree.mean())

    def losses(self, grid: ReleasedGrid, labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Compute the mix-up identity loss (equation 8) and the batch-hard triplet loss of the pair distances."""
        return self.embedding_losses(grid.conditional, labels, weights)

    def diagnostics(self, grid: ReleasedGrid) -> dict[str, Array]:
        """Return the graph diagnostics and the spread of the embeddings."""
        graph = {name: getattr(grid, name) for name in ("positive_intra", "positive_cross", "degree")}
        return graph | self.embedding_diagnostics(grid.conditional)
