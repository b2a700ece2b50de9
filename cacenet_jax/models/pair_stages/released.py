"""The graph of the `released` recipe: affinities of bottlenecks, no self loops, and a residual added to the map.

    Y = X W_y / (|X W_y| + 1e-12) of each node,   S_u = ReLU(Y_u Y_u^T) without its diagonal,   T_uv = ReLU(Y_u Y_v^T)
    d = A 1,   r = d^-1/2, or 1 where d <= 1e-3; a constant for the gradient
    map(u|v) = X_u + [ R (D - A) R G ]_u W_o,   G = X W_g,   W_o = 0 at the start

with A of both images as in graph.py and W_y, W_g, W_o 1x1 convolutions without bias, D -> D/16 and back. A pair costs its
block T (N^2 D/16) and the product with W_o (N D^2/16), a quarter of the paper's block (N^2 D) at 192 nodes and 2048
channels. The pooling after it is not linear, so that the map of every pair is made, a few at a time.

Legend: u target image, v contextual image, N and M nodes, D channels, E = D / 16, F embedding size, R images of this
device (rows), C images of all devices (columns).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from cacenet_jax.distributed.collectives import all_gather
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses
from cacenet_jax.models.backbones.non_local import REDUCTION, torch_uniform
from cacenet_jax.models.heads import Embedded, EmbeddingHead
from cacenet_jax.models.pair_stages.base import Individual, PairView
from cacenet_jax.models.pair_stages.embedding_pairs import EmbeddingPairStage
from cacenet_jax.models.pair_stages.grids import map_grid
from cacenet_jax.models.pooling import generalised_mean

AnyArray = Array | ndarray

_NORM = 1e-12  # added to a norm
_ISOLATED = 1e-3  # degrees up to this count as 1
_MAPS_AT_ONCE = 8  # candidates whose maps exist at a time


class BottleneckTerms(NamedTuple):
    """Per-image terms of the graph.

    Attributes:
        nodes_ND: the map, one row a position.
        keys_NE: Y, the keys of the affinities.
        values_NE: G, the features that the graph moves.
        intra_NN: S, at least float32, its diagonal 0.
        degree_N: row sums of S.
    """

    nodes_ND: Array
    keys_NE: Array
    values_NE: Array
    intra_NN: Array
    degree_N: Array


class Encoder(NamedTuple):
    """Constants that turn a pair's map into an embedding, but for the batch norm.

    Attributes:
        out_ED: W_o.
        exponent: p of the pooling; None for a mean.
        kernel_DF: the 1x1 convolution.
    """

    out_ED: Array
    exponent: Array | None
    kernel_DF: Array


class EncodedGrid(NamedTuple):
    """Encoded pairs of a grid and the health of their graphs; the last two without gradient.

    Attributes:
        encoded: pooled conditional maps after the 1x1 convolution, (R, C, F).
        positive_cross: fraction of positive affinities across images, (R, C).
        degree: mean degree of u's nodes, (R, C).
    """

    encoded: Array
    positive_cross: Array
    degree: Array


def unit(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """x / (|x| + 1e-12), at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    return x / (jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0) + _NORM)


def root_of(degree_N: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """d^-1/2, 1 where the degree is at most 1e-3; no gradient."""
    degree_N = jax.lax.stop_gradient(degree_N)
    some_N = degree_N > _ISOLATED
    return jnp.where(some_N, jax.lax.rsqrt(jnp.where(some_N, degree_N, 1)), 1)


class BottleneckGraph(nn.Module):
    """W_y, W_g and W_o, the layers `y`, `g` and `o`.

    Attributes:
        channels: D.
        dtype: compute type of the products; norms, affinities and degrees are at least float32.
    """

    channels: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the bottlenecks."""
        inside = max(self.channels // REDUCTION, 1)
        self.y, self.g = (
            nn.Dense(inside, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform) for _ in range(2)
        )
        self.o = nn.Dense(self.channels, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def __call__(self, nodes_BND: Float[Array, "B N D"]) -> BottleneckTerms:
        """The terms of each image, leading axis B."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        nodes_BND = nodes_BND.astype(self.dtype)
        keys_BNE, values_BNE = unit(self.y(nodes_BND)).astype(self.dtype), self.g(nodes_BND)
        if self.is_initializing():  # a layer makes its parameters when it is called
            self.o(values_BNE)
        score_BNN = jnp.einsum("bne,bme->bnm", keys_BNE, keys_BNE, preferred_element_type=wide)
        others_NN = 1 - jnp.eye(nodes_BND.shape[1], dtype=wide)
        intra_BNN = jax.nn.relu(score_BNN) * others_NN
        return BottleneckTerms(nodes_BND, keys_BNE, values_BNE, intra_BNN, intra_BNN.sum(axis=2))

    def out(self) -> Float[Array, "E D"]:
        """W_o of an initialised graph, in the compute type."""
        return self.o.variables["params"]["kernel"].astype(self.dtype)


def cross_block(u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, "N M"]:
    """T_uv, at least float32."""
    return jax.nn.relu(jnp.einsum("ne,me->nm", u.keys_NE, v.keys_NE, preferred_element_type=u.degree_N.dtype))


def _map(
    out_ED: Array, u: BottleneckTerms, v: BottleneckTerms, cross_NM: Array, degree_u_N: Array, degree_v_M: Array
) -> Array:
    """The conditional map of u given v, from the pair's cross block and degrees."""
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
    """The conditional maps of u given v and of v given u.

    Args:
        out_ED: W_o.
        u: terms of one image.
        v: terms of the other.

    Returns:
        X + R (D - A) R G W_o in the rows of u, (N, D), and of v, (M, D), at least float32.

    Source: the authors' release, https://github.com/TencentYoutuResearch/PersonReID-YouReID (Apache-2.0), for the facts.
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
    """Every image given every image, pooled and encoded; maps are made and dropped a few at a time.

    Args:
        encoder: constants of the embedding.
        terms: of this device's images, leading axis R.
        budget_bytes: of the maps that exist at a time, in the forward or the backward pass; one pair at least.
        axis_name: device axis of the rows, None on one device.
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
    """Constants of a trained stage, at least float32.

    Attributes:
        encoder: W_o, the exponent, and the 1x1 convolution with the scale of the batch norm.
        bias_F: bias of the batch norm, less the scaled mean.
    """

    encoder: Encoder
    bias_F: Array


class ReleasedGrid(NamedTuple):
    """A training grid.

    Attributes:
        conditional: f(u|v) and its logits, (R, C, F) and (R, C, I).
        positive_intra: fraction of positive affinities within images, scalar.
        positive_cross: fraction of positive affinities across images, scalar.
        degree: mean degree of a node in a pair's graph, scalar.
    """

    conditional: Embedded
    positive_intra: Array
    positive_cross: Array
    degree: Array


class ReleasedStage(EmbeddingPairStage, kw_only=True):
    """The graph of bottlenecks as a pair stage; see the top of the file.

    Attributes:
        shared_encoder: encode conditional maps by the individual head, with a second classifier; else by a head of its own.
    """

    shared_encoder: bool = True

    def setup(self) -> None:
        """Create the graph and, where the encoder is not shared, the head."""
        self.pair_graph = BottleneckGraph(self.channels, dtype=self.dtype)
        if not self.shared_encoder:
            self.conditional_head = EmbeddingHead(
                self.embed_dim, self.num_identities, self.dtype, self.axis_name, self.relu, self.dropout
            )

    @property
    def title(self) -> str:
        """Name of the stage's correspondences in figures."""
        return "correspondence attention"

    @property
    def supports_frozen(self) -> bool:
        """False: the encoder, and in the released recipe the exponent, are those of the individual branch."""
        return False

    @property
    def shares_encoder(self) -> bool:
        """True if the individual head also encodes pairs."""
        return self.shared_encoder

    def _head(self, individual: Individual) -> EmbeddingHead:
        return individual.head if self.shared_encoder else self.conditional_head

    def _encoder(self, individual: Individual, dtype: Any) -> Encoder:
        """Constants of the embedding, of an initialised model, products in the given type."""
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
        """Terms of each image, leading axis B."""
        del parts_BN, individual, train
        return self.pair_graph(nodes_BND)

    def store(self, constants: ReleasedConstants, terms: BottleneckTerms, dtype: Any) -> BottleneckTerms:
        """Everything but the degrees in the storage type: the pooling is not linear, so that whole maps are kept."""
        return super().store(constants, terms, dtype)._replace(degree_N=terms.degree_N)

    def constants(self, individual: Individual) -> ReleasedConstants:
        """Constants with the batch norm of the test mode folded in."""
        encoder = self._encoder(individual, jnp.promote_types(self.dtype, jnp.float32))
        scale_F, bias_F = self._head(individual).norm_affine()
        return ReleasedConstants(encoder._replace(kernel_DF=encoder.kernel_DF * scale_F), bias_F)

    def distance(self, constants: ReleasedConstants, u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, ""]:
        """Distance of f(u|v) and f(v|u)."""
        maps = bottleneck_maps(constants.encoder.out_ED, u, v)
        pooled_2D = jnp.stack([generalised_mean(map_ND, constants.encoder.exponent) for map_ND in maps])
        embedding_2F = pooled_2D @ constants.encoder.kernel_DF + constants.bias_F
        return self.between(*embedding_2F)

    def distances(self, constants: ReleasedConstants, u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, "C"]:
        """Distances of one image and C others, so many maps at a time as memory allows."""
        if not isinstance(v.degree_N.shape[0], int):  # an export for any number of candidates
            return super().distances(constants, u, v)
        return jax.lax.map(lambda v: self.distance(constants, u, v), v, batch_size=_MAPS_AT_ONCE)

    def view(
        self, u: BottleneckTerms, v: BottleneckTerms, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual
    ) -> PairView:
        """The cross block and the norms of the network's own conditional map."""
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
        """Encode every pair; the batch norm then sees the whole grid."""
        head = self._head(individual)
        if self.is_initializing():  # the head makes its parameters when it is called
            head(nodes_RND[:, 0], train=train)
        terms = self.terms(nodes_RND, parts_RN, individual, train=train)
        encoder = self._encoder(individual, self.dtype)
        encoded = encoded_grid(encoder, terms, int(self.memory_mib * 2**20), self.grid_axis(len(nodes_RND), train)[0])
        finish = head.finish_pairs if self.shared_encoder else head.finish
        positive_intra = (terms.intra_NN > 0).mean(dtype=jnp.float32)
        conditional = finish(encoded.encoded, train=train)
        return ReleasedGrid(conditional, positive_intra, encoded.positive_cross.mean(), encoded.degree.mean())

    def losses(self, grid: ReleasedGrid, labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Mix-up identity loss (equation 8) and batch-hard triplet loss of the pair distances."""
        return self.embedding_losses(grid.conditional, labels, weights)

    def diagnostics(self, grid: ReleasedGrid) -> dict[str, Array]:
        """Health of the graphs."""
        return {name: getattr(grid, name) for name in ("positive_intra", "positive_cross", "degree")}
