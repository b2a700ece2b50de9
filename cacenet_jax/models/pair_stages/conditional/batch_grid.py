"""Exact pair stage for all ordered pairs of a global training batch, in bounded memory.

The mean neighbour of image u in the graph of u and v is a weighted sum of the nodes of both images (see pair.py):

    mean_u[(R A R) X] = (own_uv X_u + given_vu X_v) / N,   own_uv = r_uv * (S_u r_uv),   given_uv = r_uv * (T_uv r_vu)

so the whole grid reduces to two arrays of B x B x N weights. `coefficients` computes them and contains all graph
operations. Its cost is dominated by the cross blocks T, a single Gram product of the batch. The backward pass is
hand-written to exploit the symmetry T_uv = T_vu^T, which automatic differentiation does not. Let C be the cotangent of
T; then C + C^T combines both orders of a pair. The cotangent of the keys K is then (C + C^T) K diag(w'), and that of
w' is diag(K^T (C + C^T) K) / 2. This takes one product as large as the Gram product, whereas automatic differentiation
takes two. With several devices, each device holds the rows of its local images. The cotangents of mirrored pairs are
exchanged by all_to_all, and no array of the size of the Gram matrix is communicated.

Data flow for the rows of one device, where a panel is a few rows and all columns:

    keys -> S, degrees -> [panel: T -> roots r, T r_vu] -> own, given -> [rows: weighted node sums -> Theta, encoder]

Both bracketed steps run a few rows at a time if the memory budget requires it (memory_plan.py), and T is recomputed in
the backward pass if it does not fit. No array has B^2 N D elements. An array of B^2 N^2 elements is kept only if the
budget allows it, and one of B^2 D elements exists only if it takes at most 64 MiB.

Legend: B images of the global batch, R rows (local images), P rows of a panel, N nodes of a map, D channels,
E channels of keys, F embedding size; u target image, v contextual image.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.distributed.collectives import all_gather, transpose_grid
from cacenet_jax.models.attention import affinity_scores
from cacenet_jax.models.graph import inverse_sqrt_degree
from cacenet_jax.models.pair_stages.conditional.alignment import connect
from cacenet_jax.models.pair_stages.conditional.memory_plan import Plan


class Coefficients(NamedTuple):
    """Node weights for mean neighbours, and graph diagnostics.

    Attributes:
        own_RBN: weights of u's nodes in the mean neighbour of u given v, times N.
        given_RBN: weights of u's nodes in the mean neighbour of v given u, times N.
        positive_intra: fraction of positive affinities within images, scalar, without gradient.
        positive_cross: fraction of positive affinities across images, scalar, without gradient.
        degree: mean degree of u's nodes in the graph of u and v, scalar, without gradient.
    """

    own_RBN: Array
    given_RBN: Array
    positive_intra: Array
    positive_cross: Array
    degree: Array


def _cross(keys_PNE: Array, keys_BNE: Array, weight_E: Array, nearest: int) -> Array:
    """Compute the cross blocks of a panel, shape (P, B, N, N), in one matrix product and in the dtype of the keys."""
    panel, nodes, channels = keys_PNE.shape
    flat = affinity_scores(keys_PNE.reshape(-1, channels), keys_BNE.reshape(-1, channels), weight_E)
    if not nearest:  # apply the ReLU before the transpose so that XLA fuses it with the product
        return connect(flat).astype(keys_PNE.dtype).reshape(panel, nodes, -1, nodes).swapaxes(1, 2)
    return connect(flat.reshape(panel, nodes, -1, nodes).swapaxes(1, 2), nearest).astype(keys_PNE.dtype)


def _intra(keys_NE: Array, weight_E: Array, nearest: int) -> Array:
    return connect(affinity_scores(keys_NE, keys_NE, weight_E), nearest)


def _weigh(matrix_NM: Array, vector_M: Array, fused: bool) -> Array:
    """Multiply a matrix by a vector at full precision; `fused` avoids matmul, whose inputs GPUs and TPUs round."""
    return (matrix_NM * vector_M).sum(axis=1) if fused else matrix_NM @ vector_M


def _pair(fused: bool, cross_NM: Array, degree_u_N: Array, degree_v_M: Array) -> tuple[Array, Array, Array]:
    """Compute r_uv, T_uv r_vu and the fraction of positive affinities for one pair."""
    wide_NM = cross_NM.astype(degree_u_N.dtype)
    root_u_N = inverse_sqrt_degree(degree_u_N + wide_NM.sum(axis=1))
    root_v_M = inverse_sqrt_degree(degree_v_M + wide_NM.sum(axis=0))
    return root_u_N, _weigh(wide_NM, root_v_M, fused), (cross_NM > 0).mean(dtype=jnp.float32)


class _Side(NamedTuple):
    """Root r_uv and the cotangents of r_uv and of T_uv r_vu, for one ordering of a pair."""

    root_N: Array
    d_root_N: Array
    d_reach_N: Array


def _through_root(root_N: Array, d_root_N: Array) -> Array:
    """Compute -r^3 dr / 2, the cotangent of d for r = d^-1/2, without forming r^3, which can overflow float32."""
    return -root_N * (root_N * (root_N * d_root_N)) / 2


def _pair_backward(fused: bool, cross_NM: Array, uv: _Side, vu: _Side) -> tuple[Array, Array]:
    """Compute the cotangents of T_uv (both orders combined) and of u's degree for one pair.

    They are 0 at isolated nodes, where r = 0.
    """
    wide_NM = cross_NM.astype(uv.root_N.dtype)
    degree_u_N = _through_root(uv.root_N, uv.d_root_N + _weigh(wide_NM, vu.d_reach_N, fused))
    degree_v_M = _through_root(vu.root_N, vu.d_root_N + _weigh(wide_NM.T, uv.d_reach_N, fused))
    sums_NM = degree_u_N[:, None] + degree_v_M[None]
    products_NM = uv.root_N[:, None] * vu.d_reach_N[None] + uv.d_reach_N[:, None] * vu.root_N[None]
    d_cross_NM = jnp.where(cross_NM > 0, sums_NM + products_NM, 0)
    return d_cross_NM.astype(cross_NM.dtype), degree_u_N


_pairs = jax.vmap(jax.vmap(_pair, (None, 0, None, 0)), (None, 0, 0, None))
_pairs_backward = jax.vmap(jax.vmap(_pair_backward, (None, 0, 0, 0)), (None, 0, 0, 0))


def _panels(function: Callable[[Any], Any], rows: Any, panel: int) -> Any:
    """Apply a function to all rows, `panel` rows at a time, or in a single call if they fit in one panel."""
    count = jax.tree.leaves(rows)[0].shape[0]
    if panel == count:
        return function(rows)
    cut = jax.tree.map(lambda x: x.reshape(count // panel, panel, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(function, cut))


def _mirrored_cross(keys_BNE: Array, weight_E: Array, panel: int, nearest: int) -> Array:
    """Compute all cross blocks, shape (B, B, N, N), filling the lower triangle of pairs by transposition."""
    blocks = keys_BNE.shape[0] // panel
    upper = jnp.asarray([(i, j) for i in range(blocks) for j in range(i, blocks)])
    nodes = keys_BNE.shape[1]

    def step(cross_BBNN: Array, place: Array) -> tuple[Array, None]:
        i, j = place * panel
        rows, columns = (jax.lax.dynamic_slice_in_dim(keys_BNE, start, panel) for start in (i, j))
        block = _cross(rows, columns, weight_E, nearest)
        cross_BBNN = jax.lax.dynamic_update_slice(cross_BBNN, block.transpose(1, 0, 3, 2), (j, i, 0, 0))
        return jax.lax.dynamic_update_slice(cross_BBNN, block, (i, j, 0, 0)), None

    empty = jnp.zeros((blocks * panel, blocks * panel, nodes, nodes), keys_BNE.dtype)
    return jax.lax.scan(step, empty, upper)[0]


def _own(intra_NN: Array, root_BN: Array) -> Array:
    """Compute r_uv * (S_u r_uv) for one image u and all v."""
    return root_BN * jnp.matmul(root_BN, intra_NN, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def coefficients(
    plan: Plan, keys_RNE: Float[Array, "R N E"], intra_weight_E: Float[Array, "E"], cross_weight_E: Float[Array, "E"]
) -> Coefficients:
    """Compute the node weights of the mean neighbours for every pair of the grid.

    Args:
        plan: execution plan from `memory_plan.make_plan`.
        keys_RNE: affinity keys of the local images; in the paper, the maps themselves.
        intra_weight_E: diagonal of W (equation 2).
        cross_weight_E: diagonal of W' (equation 3).

    Returns:
        Weights and diagnostics, in at least float32.

    Source: paper, equations 2-7, with the mean over positions taken before Theta (see pair.py).
    """
    return _forward(plan, keys_RNE, intra_weight_E, cross_weight_E)[0]


class _Residuals(NamedTuple):
    """Arrays that the backward pass reads; `cross_RBNN` is None if the cross blocks are computed again."""

    keys_RNE: Array
    intra_weight_E: Array
    cross_weight_E: Array
    intra_RNN: Array
    root_RBN: Array
    reach_RBN: Array
    cross_RBNN: Array | None


def _forward(
    plan: Plan, keys_RNE: Array, intra_weight_E: Array, cross_weight_E: Array
) -> tuple[Coefficients, _Residuals]:
    intra_RNN = _panels(jax.vmap(lambda k: _intra(k, intra_weight_E, plan.nearest)), keys_RNE, plan.panel)
    degree_RN = intra_RNN.sum(axis=2)
    keys_BNE, degree_BN = all_gather(keys_RNE, plan.axis_name), all_gather(degree_RN, plan.axis_name)

    def panel(rows: tuple[Array, Array, Array | None]) -> tuple[Array, ...]:
        keys_PNE, degree_PN, cross_PBNN = rows
        if cross_PBNN is None:
            cross_PBNN = _cross(keys_PNE, keys_BNE, cross_weight_E, plan.nearest)
        pairs = _pairs(plan.fused, cross_PBNN, degree_PN, degree_BN)
        return (*pairs, cross_PBNN) if plan.keep and not plan.mirror else pairs

    mirrored = _mirrored_cross(keys_BNE, cross_weight_E, plan.panel, plan.nearest) if plan.mirror else None
    root, reach, positive, *kept = _panels(panel, (keys_RNE, degree_RN, mirrored), plan.panel)
    cross = mirrored if plan.mirror else (kept[0] if kept else None)
    isolated = root == 0
    degree = jnp.where(isolated, 0, jnp.where(isolated, 1, root) ** -2).mean()
    positive_intra = (intra_RNN > 0).mean(dtype=jnp.float32)
    coefficients_RBN = Coefficients(
        jax.vmap(_own)(intra_RNN, root), root * reach, positive_intra, positive.mean(), degree
    )
    return coefficients_RBN, _Residuals(keys_RNE, intra_weight_E, cross_weight_E, intra_RNN, root, reach, cross)


def _backward(plan: Plan, kept: _Residuals, cotangent: Coefficients) -> tuple[Array, Array, Array]:
    keys_RNE, intra_weight_E, cross_weight_E, intra_RNN, root, reach, cross = kept
    if plan.nearest:  # a top-K selection has no gradient
        return jnp.zeros_like(keys_RNE), jnp.zeros_like(intra_weight_E), jnp.zeros_like(cross_weight_E)
    keys_BNE = all_gather(keys_RNE, plan.axis_name)
    channels = keys_RNE.shape[-1]
    d_intra_RNN, d_root = jax.vjp(jax.vmap(_own), intra_RNN, root)[1](cotangent.own_RBN)
    uv = _Side(root, d_root + cotangent.given_RBN * reach, cotangent.given_RBN * root)
    vu = jax.tree.map(lambda x: transpose_grid(x, plan.axis_name), uv)

    def both(d_NN: Array) -> Array:
        """Return C + C^T for a cotangent C of S."""
        return d_NN + d_NN.T

    def panel(rows: tuple[Any, ...]) -> tuple[Array, ...]:
        keys_PNE, intra_PNN, d_intra_PNN, cross_PBNN, uv, vu = rows
        if cross_PBNN is None:
            cross_PBNN = _cross(keys_PNE, keys_BNE, cross_weight_E, plan.nearest)
        d_cross_PBNN, d_degree_PBN = _pairs_backward(plan.fused, cross_PBNN, uv, vu)
        wide = d_degree_PBN.dtype
        flat = d_cross_PBNN.swapaxes(1, 2).reshape(-1, keys_BNE.shape[0] * keys_BNE.shape[1])
        through_cross = jnp.matmul(flat, keys_BNE.reshape(-1, channels), preferred_element_type=wide)
        through_cross = through_cross.reshape(keys_PNE.shape)
        d_intra_PNN = jax.vmap(both)(d_intra_PNN + d_degree_PBN.sum(axis=1)[:, :, None])
        d_intra_PNN = jnp.where(intra_PNN > 0, d_intra_PNN, 0).astype(keys_PNE.dtype)
        through_intra = jnp.einsum("pnm,pme->pne", d_intra_PNN, keys_PNE, preferred_element_type=wide)
        d_keys_PNE = through_cross * cross_weight_E.astype(wide) + through_intra * intra_weight_E.astype(wide)
        weigh = lambda through_PNE: jnp.einsum("pne,pne->pe", keys_PNE.astype(wide), through_PNE) / 2
        return d_keys_PNE.astype(keys_PNE.dtype), weigh(through_intra), weigh(through_cross)

    d_keys, d_intra_weight, d_cross_weight = _panels(
        panel, (keys_RNE, intra_RNN, d_intra_RNN, cross, uv, vu), plan.panel
    )
    of_weight = lambda d_RE, weight_E: d_RE.sum(axis=0).astype(weight_E.dtype)
    return d_keys, of_weight(d_intra_weight, intra_weight_E), of_weight(d_cross_weight, cross_weight_E)


coefficients.defvjp(_forward, _backward)


def encoded_grid(
    plan: Plan,
    nodes_RND: Float[Array, "R N D"],
    weights: Coefficients,
    encode: Callable[[Array, Array], Array],
) -> Float[Array, "R B F"]:
    """Encode the mean neighbours of every pair, a few rows at a time to avoid an R x B x D array.

    Args:
        plan: execution plan from `memory_plan.make_plan`.
        nodes_RND: feature maps of the local images.
        weights: output of `coefficients`.
        encode: linear function of the map means, (P, 1, D), and the mean neighbours, (P, B, D), returning (P, B, F).

    Returns:
        Output of `encode` for the local images as targets and all images as context.
    """
    rows, nodes, _ = nodes_RND.shape
    count = plan.encode
    wide = weights.own_RBN.dtype
    if count == rows:  # one product per image covers its roles as target and as context
        both = jnp.concatenate([weights.own_RBN, weights.given_RBN], axis=1)
        sums = _weighted(both, nodes_RND)
        own, given = jnp.split(sums, 2, axis=1)
        near = (own + transpose_grid(given, plan.axis_name)) / nodes
        return encode(nodes_RND.mean(axis=1, dtype=wide)[:, None], near)
    # Group the columns by their row block on each device, so that transpose_grid returns the rows of one block.
    blocks = rows // count
    given = weights.given_RBN.reshape(rows, -1, blocks, count, nodes)
    given = jnp.moveaxis(given, 2, 0).reshape(blocks, rows, -1, nodes)

    def block(inputs: tuple[Array, Array, Array]) -> Array:
        nodes_PND, own_PBN, given_RCN = inputs
        near = _weighted(own_PBN, nodes_PND) + transpose_grid(_weighted(given_RCN, nodes_RND), plan.axis_name)
        return encode(nodes_PND.mean(axis=1, dtype=wide)[:, None], near / nodes)

    cut = lambda x: x.reshape(blocks, count, *x.shape[1:])
    out = jax.lax.map(jax.checkpoint(block), (cut(nodes_RND), cut(weights.own_RBN), given))
    return out.reshape(rows, *out.shape[2:])


def _weighted(weights_RBN: Array, nodes_RND: Array) -> Array:
    """Compute sum_n weight_n x_n for every pair, shape (R, B, D), with products in the dtype of the nodes."""
    weights_RBN, wide = weights_RBN.astype(nodes_RND.dtype), weights_RBN.dtype
    return jnp.einsum("rbn,rnd->rbd", weights_RBN, nodes_RND, preferred_element_type=wide)
