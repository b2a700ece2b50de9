"""Graph convolution on the correspondence graph, implemented literally (paper section 3.4.1, equations 5-7).

This form builds the full (N+M) x (N+M) graph and the full conditional maps. It is the reference for the values
and gradients of the implementations used in practice: pair.py, batch_grid.py and stored.py in pair_stages/conditional/.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.errors import UserError
from cacenet_jax.models.attention import Adjacency

AnyArray = Array | ndarray
Kind = Literal["discrepancy", "normal"]


def neighbour_sign(kind: str) -> int:
    """Return -1 for the discrepancy convolution (equation 7) and +1 for the normal one (equation 6)."""
    signs = {"discrepancy": -1, "normal": 1}
    if kind not in signs:
        raise UserError(f"graph convolution kind: found {kind!r}, expected one of {sorted(signs)}")
    return signs[kind]


def inverse_sqrt_degree(degree_N: Float[AnyArray, "*N"]) -> Float[Array, "*N"]:
    """Compute d^(-1/2), or 0 for an isolated node (degree 0), with finite values and gradients."""
    degree_N = jnp.asarray(degree_N)
    positive_N = degree_N > 0
    return jnp.where(positive_N, 1 / jnp.sqrt(jnp.where(positive_N, degree_N, 1)), 0)


def laplacian_conv(
    adjacency: Adjacency,
    nodes_u_ND: Float[AnyArray, "N D"],
    nodes_v_MD: Float[AnyArray, "M D"],
    theta_DF: Float[AnyArray, "D F"] | None = None,
    kind: Kind = "discrepancy",
) -> tuple[Float[Array, "N F"], Float[Array, "M F"]]:
    """Apply Y = (I - R A R) X Theta (discrepancy) or (I + R A R) X Theta (normal), R = diag(d^-1/2), d = A 1.

    The paper prints D^-1/2 A D^{1/2}, a similarity transform that does not normalise A. We take this as a misprint of
    D^-1/2 A D^-1/2, since the paper calls it the "normalized graph Laplacian".

    Args:
        adjacency: blocks of A, non-negative.
        nodes_u_ND: map of the target image.
        nodes_v_MD: map of the contextual image.
        theta_DF: filter; None for the identity.
        kind: "discrepancy" (equation 7) or "normal" (equation 6).

    Returns:
        The conditional maps of u given v, (N, F), and of v given u, (M, F).

    Raises:
        UserError: unknown kind.

    Source: paper, equations 5, 6 and 7.
    """
    nodes_u_ND, nodes_v_MD = jnp.asarray(nodes_u_ND), jnp.asarray(nodes_v_MD)
    num_u = nodes_u_ND.shape[0]
    graph_LL = jnp.block([[adjacency.intra_u, adjacency.cross], [adjacency.cross.T, adjacency.intra_v]])
    root_L = inverse_sqrt_degree(graph_LL.sum(axis=1))
    nodes_LD = jnp.concatenate([nodes_u_ND, nodes_v_MD])
    neighbours_LD = (root_L[:, None] * graph_LL * root_L[None, :]) @ nodes_LD
    out_LF = nodes_LD + neighbour_sign(kind) * neighbours_LD
    if theta_DF is not None:
        out_LF = out_LF @ theta_DF
    return out_LF[:num_u], out_LF[num_u:]
