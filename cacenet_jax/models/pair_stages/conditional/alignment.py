"""Alignment strategies: which positions of two images are neighbours in the graph (paper section 4.3.2, table 2).

Every strategy gives the same two things, the block S within an image and the block T across two images. All are products of
keys, one key a position: S = c(K_u diag(w) K_u^T), T = c(K_u diag(w') K_v^T). So they share the exact pair stage, its
memory plan and its devices, and differ in keys, weights and in c alone:

    strategy     key of a position                    c             neighbours
    attention    its features (equations 2-4)         ReLU          learned, soft
    individual   its features; T = 0                  ReLU          learned, soft, within the image alone (table 1)
    none         0                                    ReLU          nobody
    part         one-hot of its place                 ReLU          the same place
    similarity   its features, L2-normalised          top K         the K most similar, by cosine, in either direction
    full         1                                    ReLU          everybody
    semantic     one-hot of its body part, 0 outside  ReLU          the same body part

The last five are rules: their edges weigh 1 and get no gradient.

Legend: u target image, v contextual image, B images, N and M nodes, D channels, E channels of keys, H x W pixels.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
from numpy import ndarray

from cacenet_jax.errors import UserError
from cacenet_jax.models.attention import Adjacency, affinity_scores
from cacenet_jax.models.heads import normalise

AnyArray = Array | ndarray
Alignment = Literal["attention", "individual", "none", "part", "similarity", "full", "semantic"]
STRATEGIES: tuple[str, ...] = get_args(Alignment)
LEARNED = ("attention", "individual")
_FEW = 8
NUM_LABELS = 32  # of body parts, 0 for none; as data/parts.py reads them


def connect(scores_NM: Float[Array, "*grid N M"], nearest: int = 0) -> Float[Array, "*grid N M"]:
    """From scores of pairs of positions to a block of the graph.

    Args:
        scores_NM: products of keys.
        nearest: 0 for ReLU(scores), the paper's; K for edges of weight 1 between a position and each of the K positions
            with the highest scores, in either direction, so that T_vu = T_uv^T. Equal scores are taken or left together,
            scores that are not positive are left. No gradient.
    """
    if not nearest:
        return jax.nn.relu(scores_NM)

    def highest(x_NM: Array) -> Array:
        return x_NM >= _kth_highest(x_NM, min(nearest, x_NM.shape[-1]))

    fixed_NM = jax.lax.stop_gradient(scores_NM)
    chosen_NM = highest(fixed_NM) | highest(fixed_NM.swapaxes(-1, -2)).swapaxes(-1, -2)
    return (chosen_NM & (fixed_NM > 0)).astype(scores_NM.dtype)


def _kth_highest(x_NM: Array, count: int) -> Array:
    """The count-th highest of each row, (N, 1). For a few, passes over all of them are faster than a partial sort."""
    if count > _FEW:
        return jax.lax.top_k(x_NM, count)[0][..., -1:]
    least_N1 = x_NM.max(axis=-1, keepdims=True)
    for _ in range(count - 1):
        enough_N1 = (x_NM >= least_N1).sum(axis=-1, keepdims=True) >= count
        next_N1 = jnp.where(x_NM < least_N1, x_NM, -jnp.inf).max(axis=-1, keepdims=True)
        least_N1 = jnp.where(enough_N1, least_N1, next_N1)
    return least_N1


def rule_keys(
    strategy: str, nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None = None
) -> Float[Array, "B N E"]:
    """Keys of a strategy that is a rule.

    Args:
        strategy: "none", "part", "similarity", "full" or "semantic".
        nodes_BND: maps, one row a position.
        parts_BN: body part of each position, 0 for none; "semantic" needs it.

    Raises:
        UserError: another strategy, or "semantic" without labels.
    """
    batch, nodes, _ = nodes_BND.shape
    if strategy == "semantic":
        if parts_BN is None:
            raise UserError(
                "semantic alignment: found images without part labels, expected one label a pixel; set config.data.parts "
                "to a folder of label files or choose another config.model.pair.alignment"
            )
        return jax.nn.one_hot(parts_BN, NUM_LABELS, dtype=nodes_BND.dtype).at[..., 0].set(0)
    if strategy == "similarity":
        return jax.lax.stop_gradient(normalise(nodes_BND).astype(nodes_BND.dtype))
    if strategy == "part":
        return jnp.broadcast_to(jnp.eye(nodes, dtype=nodes_BND.dtype), (batch, nodes, nodes))
    if strategy in ("none", "full"):
        one_N1 = jnp.full((nodes, 1), strategy == "full", nodes_BND.dtype)
        return jnp.broadcast_to(one_N1, (batch, nodes, 1))  # jax2onnx fills no array of a symbolic batch
    raise UserError(
        f"alignment rule: found {strategy!r}, expected none, part, similarity, full or semantic; choose one"
    )


def blocks(
    strategy: str,
    nodes_u_ND: Float[AnyArray, "N D"],
    nodes_v_MD: Float[AnyArray, "M D"],
    *,
    intra_weight_D: Float[AnyArray, "D"] | None = None,
    cross_weight_D: Float[AnyArray, "D"] | None = None,
    parts_u_N: Int[AnyArray, "N"] | None = None,
    parts_v_M: Int[AnyArray, "M"] | None = None,
    neighbours: int = 1,
) -> Adjacency:
    """The graph of two images under a strategy, for `graph.laplacian_conv`, figures and studies.

    Args:
        strategy: one of STRATEGIES.
        nodes_u_ND: map of the target image, one row a position.
        nodes_v_MD: map of the contextual image, as many positions for "part".
        intra_weight_D: diagonal of W; ones by default. Learned strategies alone read it and the next.
        cross_weight_D: diagonal of W'; ones by default.
        parts_u_N: body part of each position of u, 0 for none, for "semantic".
        parts_v_M: the same for v.
        neighbours: K of "similarity".

    Returns:
        S_u, S_v and T_uv.

    Raises:
        UserError: an unknown strategy, maps of two sizes for "part", or no labels for "semantic".

    Source: paper, equations 2-4, sections 4.3.1 and 4.3.2.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"alignment: found {strategy!r}, expected one of {', '.join(STRATEGIES)}; choose one of them")
    keys_u, keys_v = jnp.asarray(nodes_u_ND), jnp.asarray(nodes_v_MD)
    if strategy == "part" and len(keys_u) != len(keys_v):
        raise UserError(
            f"part alignment: found maps of {len(keys_u)} and {len(keys_v)} positions, expected the same number; resize"
        )
    if strategy not in LEARNED:
        labels = [None if parts is None else jnp.asarray(parts)[None] for parts in (parts_u_N, parts_v_M)]
        keys_u, keys_v = (rule_keys(strategy, k[None], p)[0] for k, p in zip((keys_u, keys_v), labels, strict=True))
    ones_E = jnp.ones(keys_u.shape[-1], keys_u.dtype)
    learned = strategy in LEARNED
    intra_E = ones_E if intra_weight_D is None or not learned else jnp.asarray(intra_weight_D)
    cross_E = ones_E if cross_weight_D is None or not learned else jnp.asarray(cross_weight_D)
    cross_E = jnp.zeros_like(cross_E) if strategy == "individual" else cross_E
    nearest = neighbours if strategy == "similarity" else 0
    return Adjacency(
        connect(affinity_scores(keys_u, keys_u, intra_E), nearest),
        connect(affinity_scores(keys_v, keys_v, intra_E), nearest),
        connect(affinity_scores(keys_u, keys_v, cross_E), nearest),
    )


def node_parts(parts_BHW: Shaped[Array, "B H W"], height: int, width: int) -> Int[Array, "B N"]:
    """Body part of each position of a height x width map from the labels of its pixels.

    The most frequent body part of the pixels that a position stands for (of equal ones the lowest label); 0 where more than
    three quarters of them belong to nobody: limbs are narrower than a position.

    Args:
        parts_BHW: label of each pixel, 0 for background, below NUM_LABELS.
        height: rows of the map.
        width: columns of the map.
    """
    _, rows, columns = parts_BHW.shape
    in_row_hH = jax.nn.one_hot(jnp.arange(rows) * height // rows, height, axis=0)
    in_column_wW = jax.nn.one_hot(jnp.arange(columns) * width // columns, width, axis=0)
    label_BHW = jnp.round(parts_BHW).astype(jnp.int32)

    def count(label: Array) -> Array:
        shown_BHW = (label_BHW == label).astype(in_row_hH.dtype)
        return jnp.einsum("hH,bHW,wW->bhw", in_row_hH, shown_BHW, in_column_wW)

    # One label at a time: one-hot pixels would take NUM_LABELS times the memory of the labels.
    count_PBhw = jax.lax.map(count, jnp.arange(NUM_LABELS))
    nobody_Bhw = 4 * count_PBhw[0] > 3 * count_PBhw.sum(axis=0)
    part_Bhw = jnp.where(nobody_Bhw, 0, 1 + count_PBhw[1:].argmax(axis=0))
    return part_Bhw.reshape(part_Bhw.shape[0], -1)
