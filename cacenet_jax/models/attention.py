"""Correspondence attention: the importance of each pair of regions (paper section 3.3, equations 2-4).

Legend: u target image, v contextual image, N and M nodes (positions) of their maps, D channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

AnyArray = Array | ndarray


class Adjacency(NamedTuple):
    """Blocks of the symmetric adjacency matrix A = [[intra_u, cross], [cross^T, intra_v]], with non-negative entries.

    Attributes:
        intra_u: S_u, shape (N, N).
        intra_v: S_v, shape (M, M).
        cross: T_uv, shape (N, M); T_vu is its transpose.
    """

    intra_u: Array
    intra_v: Array
    cross: Array


def affinity_scores(
    left_ND: Float[AnyArray, "N D"], right_MD: Float[AnyArray, "M D"], weight_D: Float[AnyArray, "D"]
) -> Float[Array, "N M"]:
    """Compute the signed importance of every pair of nodes, X diag(w) X'^T.

    Products are computed in the dtype of the nodes and accumulated in at least float32. The result has the dtype of the
    accumulator.

    Args:
        left_ND: nodes of one image.
        right_MD: nodes of the same image (equation 2) or of another image (equation 3).
        weight_D: learned channel weights, the diagonal of W or W'.
    """
    left_ND, right_MD = jnp.asarray(left_ND), jnp.asarray(right_MD)
    weighted_ND = left_ND * jnp.asarray(weight_D).astype(left_ND.dtype)
    accumulate = jnp.promote_types(left_ND.dtype, jnp.float32)
    return jnp.einsum("nd,md->nm", weighted_ND, right_MD, preferred_element_type=accumulate)


def affinity(
    left_ND: Float[AnyArray, "N D"], right_MD: Float[AnyArray, "M D"], weight_D: Float[AnyArray, "D"]
) -> Float[Array, "N M"]:
    """Compute ReLU(X diag(w) X'^T), i.e. `affinity_scores` with negative values set to zero."""
    return jax.nn.relu(affinity_scores(left_ND, right_MD, weight_D))


def correspondence(
    nodes_u_ND: Float[AnyArray, "N D"],
    nodes_v_MD: Float[AnyArray, "M D"],
    intra_weight_D: Float[AnyArray, "D"],
    cross_weight_D: Float[AnyArray, "D"],
) -> Adjacency:
    """Compute the correspondence graph of two images.

    Affinities are S = ReLU(X W X^T) within an image and T = ReLU(X_u W' X_v^T) across images.

    Args:
        nodes_u_ND: map of the target image, one row per position.
        nodes_v_MD: map of the contextual image.
        intra_weight_D: diagonal of W (equation 2).
        cross_weight_D: diagonal of W' (equation 3).

    Returns:
        The three distinct blocks of equation 4.

    Source: paper, equations 2, 3 and 4.
    """
    return Adjacency(
        intra_u=affinity(nodes_u_ND, nodes_u_ND, intra_weight_D),
        intra_v=affinity(nodes_v_MD, nodes_v_MD, intra_weight_D),
        cross=affinity(nodes_u_ND, nodes_v_MD, cross_weight_D),
    )
