"""Exact pair stage for retrieval: one image against many, from stored per-image terms.

In inference mode everything after the graph is affine. Theta, the encoder and its batch norm can therefore be folded
into D x F matrices, which are applied to the nodes of an image before any pair is formed:

    f(u|v) = own_u + (r_u * (S_u r_u))^T Z_u + (r_v * (T_uv^T r_u))^T Z_v,      Z = -+ X Theta_1 E / N

where E is the encoder with the batch-norm scale folded in, and own_u = mean_u X Theta_0 E + bias. A pair then costs its
block T_uv and matrix-vector products of size N x N and N x F, and none of size N x D or D x D. For this reason the
algebra of pair.py is repeated here in a different form, which is tested against the literal one. The maps themselves
are not stored. T_uv is computed from keys scaled by the square root of |w'|, so both images of a pair are stored in the
same form and rounded once.

Legend: u one image, v the C images it is compared with, N and M nodes, D channels, E channels of keys, F embedding
size, B images.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.models.graph import inverse_sqrt_degree
from cacenet_jax.models.pair_stages.conditional.alignment import connect
from cacenet_jax.models.pair_stages.conditional.clues import Clues
from cacenet_jax.models.pair_stages.conditional.head import ComposedHead
from cacenet_jax.models.pair_stages.conditional.pair import ImageTerms


class CrossWeight(NamedTuple):
    """W' split into a factor for the stored keys, a sign and an offset, in at least float32.

    Attributes:
        root_E: sqrt |w'|, by which stored keys are scaled; a single value if w' is not learned.
        sign_E: sign of w', -1, 0 or 1; a single value if w' is not learned.
        offset: offset of every cross affinity before the ReLU, the negative learned threshold or 0.
    """

    root_E: Array
    sign_E: Array
    offset: Array


class PairConstants(NamedTuple):
    """Constants of a trained stage.

    Attributes:
        head: the composed conditional head.
        cross: weight of the cross affinities.
    """

    head: ComposedHead
    cross: CrossWeight


class StoredTerms(NamedTuple):
    """Per-image terms stored for retrieval.

    Attributes:
        keys_NE: keys of the cross affinities, in the storage dtype, or at full precision for a top-K selection.
        values_NF: contributions of the nodes to f, in the storage dtype.
        own_F: contribution of the image's own mean to f, in at least float32.
        intra_NN: S, in the storage dtype.
        degree_N: row sums of S before rounding, in at least float32.
        clues: regions for the clue distance, with directions in the storage dtype, or None if it is not used.
    """

    keys_NE: Array
    values_NF: Array
    own_F: Array
    intra_NN: Array
    degree_N: Array
    clues: Clues | None


def split_weight(weight_E: Float[Array, "E"], has_threshold: bool) -> CrossWeight:
    """Split the diagonal of W' into key scale, sign and offset (the weight of the constant channel, or 0)."""
    weight_E = weight_E.astype(jnp.promote_types(weight_E.dtype, jnp.float32))
    channels = len(weight_E) - has_threshold
    weight_E, threshold = weight_E[:channels], weight_E[channels:]
    return CrossWeight(jnp.sqrt(jnp.abs(weight_E)), jnp.sign(weight_E), threshold.sum())


def store(
    constants: PairConstants, graph: ImageTerms, clues: Clues | None, dtype: Any, *, nearest: int, has_threshold: bool
) -> StoredTerms:
    """Compute the terms to store for a batch of images.

    Args:
        constants: constants of the stage.
        graph: graph terms, leading axis B, in at least float32.
        clues: regions for the clue distance, leading axis B, or None if it is not used.
        dtype: storage dtype of keys, values, affinities and clues.
        nearest: as in `alignment.connect`.
        has_threshold: True if the last key channel is the constant channel for the learned threshold.
    """
    keys_BNE = graph.nodes_ND if graph.keys_NE is None else graph.keys_NE
    keys_BNE = keys_BNE[..., :-1] if has_threshold else keys_BNE
    values_BNF = (graph.nodes_ND @ (constants.head.near_DF / graph.nodes_ND.shape[1])).astype(dtype)
    own_BF = graph.nodes_ND.mean(axis=1) @ constants.head.own_DF + constants.head.bias_F
    if clues is not None:
        clues = Clues(clues.direction_NF.astype(dtype), clues.salience_N)
    keys_BNE = (keys_BNE * constants.cross.root_E).astype(graph.degree_N.dtype if nearest else dtype)
    return StoredTerms(keys_BNE, values_BNF, own_BF, graph.intra_NN.astype(dtype), graph.degree_N, clues)


def embeddings(
    constants: PairConstants, u: StoredTerms, v: StoredTerms, nearest: int
) -> tuple[Float[Array, "C F"], Float[Array, "C F"]]:
    """Compute f(u|v) and f(v|u) for one image u and C images v.

    All affinities come from a single product of (C N) x E and E x N. Products of bfloat16 keys are exact and
    accumulated in float32.

    Args:
        constants: constants of the stage.
        u: stored terms of one image.
        v: stored terms of the C others, leading axis C.
        nearest: as in `alignment.connect`.
    """
    acc_dtype = u.degree_N.dtype
    signed_NE = u.keys_NE * constants.cross.sign_E.astype(u.keys_NE.dtype)  # exact in any dtype
    scores_CMN = jnp.einsum("cme,ne->cmn", v.keys_NE, signed_NE, preferred_element_type=acc_dtype)
    cross_CMN = connect(scores_CMN + constants.cross.offset, nearest)
    root_u_CN = inverse_sqrt_degree(u.degree_N + cross_CMN.sum(axis=1))
    root_v_CM = inverse_sqrt_degree(v.degree_N + cross_CMN.sum(axis=2))
    own_u_CN = root_u_CN * (root_u_CN @ u.intra_NN.astype(acc_dtype))
    # Elementwise product and sum instead of a batched matmul: XLA fuses them without storing an upcast copy.
    own_v_CM = root_v_CM * (root_v_CM[:, :, None] * v.intra_NN).sum(axis=1)
    cross_v_CM = root_v_CM * (root_u_CN[:, None, :] * cross_CMN).sum(axis=2)
    cross_u_CN = root_u_CN * (root_v_CM[:, :, None] * cross_CMN).sum(axis=1)
    values_u_NF = u.values_NF.astype(acc_dtype)
    given_v_CF = u.own_F + own_u_CN @ values_u_NF + (cross_v_CM[:, :, None] * v.values_NF).sum(axis=1)
    given_u_CF = v.own_F + cross_u_CN @ values_u_NF + (own_v_CM[:, :, None] * v.values_NF).sum(axis=1)
    return given_v_CF, given_u_CF
