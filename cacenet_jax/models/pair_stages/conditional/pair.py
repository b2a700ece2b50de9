"""Means of the conditional maps of a single pair, computed exactly and without building the maps.

See batch_grid.py for training batches and stored.py for one image against many.

Everything from the graph convolution to the encoder is linear, so the mean over positions can be taken first:

    mean_u[(R A R) X] = (1/N) [ (r_u * (S_u r_u))^T X_u + (r_v * (T_uv^T r_u))^T X_v ]

where r_u = (rowsum S_u + rowsum T_uv)^-1/2 and r_v = (rowsum S_v + colsum T_uv)^-1/2. A pair costs its block T_uv
and, for each order, two matrix-vector products of size N x N and two of size N x D. Neither a 2N x 2N graph nor a
conditional map is built. S_u is computed once per image. The literal form in graph.py is the test oracle.
`conditional_maps` computes the full maps for figures.

Legend: u target image, v contextual image, N nodes (positions) of a map, D channels, E channels of keys.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.attention import affinity_scores
from cacenet_jax.models.graph import Kind, inverse_sqrt_degree, neighbour_sign
from cacenet_jax.models.pair_stages.conditional.alignment import connect

AnyArray = Array | ndarray


class ImageTerms(NamedTuple):
    """Per-image terms of the pair stage.

    Attributes:
        nodes_ND: feature map, one row per position.
        keys_NE: affinity keys, or None if the nodes themselves are the keys, as in the paper.
        intra_NN: S = ReLU(K diag(w) K^T), in at least float32.
        degree_N: row sums of S.
    """

    nodes_ND: Array
    keys_NE: Array | None
    intra_NN: Array
    degree_N: Array


def image_terms(
    nodes_ND: Float[AnyArray, "N D"],
    intra_weight_E: Float[AnyArray, "E"],
    keys_NE: Float[AnyArray, "N E"] | None = None,
    nearest: int = 0,
) -> ImageTerms:
    """Compute the per-image terms of the pair stage; keys default to the nodes (equation 2).

    `nearest` is defined as in `alignment.connect`: 0 for the ReLU, K for a top-K selection.
    """
    nodes_ND = jnp.asarray(nodes_ND)
    keys_NE = None if keys_NE is None else jnp.asarray(keys_NE)
    used_NE = nodes_ND if keys_NE is None else keys_NE
    intra_NN = connect(affinity_scores(used_NE, used_NE, intra_weight_E), nearest)
    return ImageTerms(nodes_ND, keys_NE, intra_NN, intra_NN.sum(axis=1))


def _cross(u: ImageTerms, v: ImageTerms, cross_weight_E: AnyArray, nearest: int) -> Array:
    keys_u = u.nodes_ND if u.keys_NE is None else u.keys_NE
    keys_v = v.nodes_ND if v.keys_NE is None else v.keys_NE
    return connect(affinity_scores(keys_u, keys_v, cross_weight_E), nearest)


def _mean_neighbour(u: ImageTerms, v: ImageTerms, cross_NM: Array, root_u_N: Array, root_v_M: Array) -> Array:
    own_N = root_u_N * (root_u_N @ u.intra_NN)
    other_M = root_v_M * (root_u_N @ cross_NM)
    accumulate = cross_NM.dtype
    total_D = jnp.einsum("n,nd->d", own_N.astype(u.nodes_ND.dtype), u.nodes_ND, preferred_element_type=accumulate)
    total_D += jnp.einsum("n,nd->d", other_M.astype(v.nodes_ND.dtype), v.nodes_ND, preferred_element_type=accumulate)
    return total_D / u.nodes_ND.shape[0]


def neighbours_both(
    u: ImageTerms, v: ImageTerms, cross_weight_E: Float[AnyArray, "E"], nearest: int = 0
) -> tuple[Array, Array]:
    """Compute the mean neighbours of u given v and of v given u, (D,) each, from one cross block (T_vu = T_uv^T)."""
    cross_NM = _cross(u, v, cross_weight_E, nearest)
    root_u_N = inverse_sqrt_degree(u.degree_N + cross_NM.sum(axis=1))
    root_v_M = inverse_sqrt_degree(v.degree_N + cross_NM.sum(axis=0))
    mean_u_D = _mean_neighbour(u, v, cross_NM, root_u_N, root_v_M)
    mean_v_D = _mean_neighbour(v, u, cross_NM.T, root_v_M, root_u_N)
    return mean_u_D, mean_v_D


def conditional_maps(
    u: ImageTerms, v: ImageTerms, cross_weight_E: Float[AnyArray, "E"], kind: Kind = "discrepancy", nearest: int = 0
) -> tuple[Float[Array, "N D"], Float[Array, "M D"]]:
    """Compute the conditional maps of u given v and of v given u before Theta, without a 2N x 2N graph.

    Args:
        u: terms of one image.
        v: terms of the other.
        cross_weight_E: diagonal of W' (equation 3).
        kind: "discrepancy" (equation 7) or "normal" (equation 6).
        nearest: as in `alignment.connect`.

    Returns:
        The rows of (I -+ R A R) X for u, shape (N, D), and for v, shape (M, D), in at least float32.
    """
    cross_NM = _cross(u, v, cross_weight_E, nearest)
    root_u_N = inverse_sqrt_degree(u.degree_N + cross_NM.sum(axis=1))
    root_v_M = inverse_sqrt_degree(v.degree_N + cross_NM.sum(axis=0))
    wide, sign = cross_NM.dtype, neighbour_sign(kind)

    def product(affinity_NM: Array, weight_M: Array, nodes_MD: Array) -> Array:
        weighted_NM = (affinity_NM * weight_M).astype(nodes_MD.dtype)
        return jnp.matmul(weighted_NM, nodes_MD, preferred_element_type=wide)

    near_u_ND = product(u.intra_NN, root_u_N, u.nodes_ND) + product(cross_NM, root_v_M, v.nodes_ND)
    near_v_MD = product(v.intra_NN, root_v_M, v.nodes_ND) + product(cross_NM.T, root_u_N, u.nodes_ND)
    return (
        u.nodes_ND.astype(wide) + sign * root_u_N[:, None] * near_u_ND,
        v.nodes_ND.astype(wide) + sign * root_v_M[:, None] * near_v_MD,
    )


def pooled_pair(
    nodes_u_ND: Float[AnyArray, "N D"],
    nodes_v_MD: Float[AnyArray, "M D"],
    intra_weight_D: Float[AnyArray, "D"],
    cross_weight_D: Float[AnyArray, "D"],
    kind: Kind = "discrepancy",
) -> tuple[Float[Array, "D"], Float[Array, "D"]]:
    """Compute the means over positions of both conditional maps before Theta, without building the maps.

    Values and gradients equal those of the means of `graph.laplacian_conv(attention.correspondence(...), ...)`.

    Args:
        nodes_u_ND: map of the target image.
        nodes_v_MD: map of the contextual image.
        intra_weight_D: diagonal of W (equation 2).
        cross_weight_D: diagonal of W' (equation 3).
        kind: "discrepancy" (equation 7) or "normal" (equation 6).

    Returns:
        mean_u[(I -+ R A R) X] and mean_v[(I -+ R A R) X], shape (D,) each, in at least float32.

    Source: paper, equations 2-7, with the mean over positions taken before Theta.
    """
    u, v = image_terms(nodes_u_ND, intra_weight_D), image_terms(nodes_v_MD, intra_weight_D)
    near_u_D, near_v_D = neighbours_both(u, v, cross_weight_D)
    sign = neighbour_sign(kind)
    accumulate = near_u_D.dtype
    return (
        u.nodes_ND.mean(axis=0, dtype=accumulate) + sign * near_u_D,
        v.nodes_ND.mean(axis=0, dtype=accumulate) + sign * near_v_D,
    )
