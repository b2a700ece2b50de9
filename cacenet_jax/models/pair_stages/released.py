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

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.pair_stages.grids import map_grid
from cacenet_jax.models.pooling import generalised_mean

AnyArray = Array | ndarray

REDUCTION = 16  # of the channels inside a bottleneck
_NORM = 1e-12  # added to a norm
_ISOLATED = 1e-3  # degrees up to this count as 1


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """What PyTorch starts a convolution with: uniform within 1 / sqrt(inputs); of a bias the inputs are its own size.

    A bias of E numbers belongs to a kernel of 16 E inputs here.
    """
    inputs = shape[0] if len(shape) > 1 else REDUCTION * shape[0]
    return jax.random.uniform(key, shape, dtype, -1, 1) / math.sqrt(inputs)


class BottleneckTerms(NamedTuple):
    """What the graph needs of one image; computed once per image.

    Attributes:
        nodes_ND: the map, one row a position.
        keys_NE: Y, what affinities are made from.
        values_NE: G, what the graph moves.
        intra_NN: S, at least float32, its diagonal 0.
        degree_N: row sums of S.
    """

    nodes_ND: Array
    keys_NE: Array
    values_NE: Array
    intra_NN: Array
    degree_N: Array


class Encoder(NamedTuple):
    """What makes an embedding of a pair's map.

    Attributes:
        out_ED: W_o.
        exponent: p of the pooling; None for a mean.
        kernel_DF: the 1x1 convolution.
    """

    out_ED: Array
    exponent: Array | None
    kernel_DF: Array


class EncodedGrid(NamedTuple):
    """Of every pair of a grid; the last two without gradient.

    Attributes:
        encoded: pooled conditional maps after the 1x1 convolution, (R, C, F).
        positive_cross: share of positive affinities across images, (R, C).
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
    out_ED: Float[AnyArray, "E D"], u: BottleneckTerms, v: BottleneckTerms
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
        encoder: what makes an embedding of a map.
        terms: of this device's images, leading axis R.
        budget_bytes: of the maps that exist at a time, in the forward or the backward pass; one pair at least.
        axis_name: device axis of the rows, None on one device.
    """
    columns = terms
    if axis_name is not None:
        columns = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), terms)
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
