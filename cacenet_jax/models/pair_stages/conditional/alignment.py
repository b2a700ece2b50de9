"""Alignment strategies, which define the neighbours of a position in the graph (paper section 4.3.2, table 2).

Every strategy defines two blocks of the graph, S within an image and T across two images. Both are computed from
products of keys, one key per position: S = c(K_u diag(w) K_u^T), T = c(K_u diag(w') K_v^T). All strategies therefore
share the exact pair stage, its memory plan and its multi-device support. They differ only in keys, weights and c:

    strategy     key of a position                    c             neighbours
    attention    its features (equations 2-4)         ReLU          learned, soft
    individual   its features; T = 0                  ReLU          learned, soft, only within the image (table 1)
    none         0                                    ReLU          none
    part         one-hot of its index                 ReLU          the same position
    similarity   its features, L2-normalised          top K         the K most similar, by cosine, in either direction
    full         1                                    ReLU          all positions
    semantic     one-hot of its body part, 0 if none  ReLU          the same body part

The last five are fixed rules, whose edges have weight 1 and no gradient. To add a rule, write a function from maps to
keys and register it with `STRATEGIES.register`. A strategy in another module is selected by
`config.model.pair.alignment=MODULE:NAME`.

Legend: u target image, v contextual image, B images, N and M nodes, D channels, E channels of keys.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from cacenet_jax.errors import UserError
from cacenet_jax.models.attention import Adjacency, affinity_scores
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.affinities import Block
from cacenet_jax.models.part_positions import NUM_LABELS
from cacenet_jax.models.registry import Registry

AnyArray = Array | ndarray
_FEW = 8  # up to this K, repeated maxima are used instead of a partial sort


@dataclasses.dataclass(frozen=True)
class Strategy:
    """An alignment strategy.

    Attributes:
        title: name in figures.
        rule: function from maps (B, N, D) and optional body parts (B, N) to keys (B, N, E). `rule` is None if the keys
            are learned.
        learned: blocks with learned weights.
        top_k: connect the K highest scores, with K = `config.model.pair.neighbours`, instead of applying a ReLU.
        needs_parts: True if the images must have a body-part label for each pixel.
        row: label of an additional row of table 2 for this strategy, or None.
    """

    title: str
    rule: Callable[[Array, Array | None], Array] | None = None
    learned: tuple[Block, ...] = ()
    top_k: bool = False
    needs_parts: bool = False
    row: str | None = None


STRATEGIES: Registry[Strategy] = Registry(
    "config.model.pair.alignment", "strategy", lambda value: isinstance(value, Strategy), "an alignment.Strategy"
)


def table_rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the additional rows of table 2 as {name: (label, fields of `config.model.pair`)}."""
    return {name: (label, {"alignment": name}) for name in STRATEGIES if (label := STRATEGIES.resolve(name).row)}


def connect(scores_NM: Float[Array, "*grid N M"], nearest: int = 0) -> Float[Array, "*grid N M"]:
    """Convert scores of position pairs to a block of the graph.

    Args:
        scores_NM: products of keys.
        nearest: 0 for ReLU(scores), as in the paper. K connects each position to the K positions with the highest
            scores. Selection in either direction suffices, so T_vu = T_uv^T. These edges have weight 1 and no gradient.
            Ties are selected or rejected together, and only positive scores are selected.
    """
    if not nearest:
        return jax.nn.relu(scores_NM)

    def highest(x_NM: Array) -> Array:
        return x_NM >= _kth_highest(x_NM, min(nearest, x_NM.shape[-1]))

    fixed_NM = jax.lax.stop_gradient(scores_NM)
    chosen_NM = highest(fixed_NM) | highest(fixed_NM.swapaxes(-1, -2)).swapaxes(-1, -2)
    return (chosen_NM & (fixed_NM > 0)).astype(scores_NM.dtype)


def _kth_highest(x_NM: Array, count: int) -> Array:
    """Return the count-th highest value of each row, shape (N, 1).

    For small counts, repeated maxima are faster than a partial sort.
    """
    if count > _FEW:
        return jax.lax.top_k(x_NM, count)[0][..., -1:]
    least_N1 = x_NM.max(axis=-1, keepdims=True)
    for _ in range(count - 1):
        enough_N1 = (x_NM >= least_N1).sum(axis=-1, keepdims=True) >= count
        next_N1 = jnp.where(x_NM < least_N1, x_NM, -jnp.inf).max(axis=-1, keepdims=True)
        least_N1 = jnp.where(enough_N1, least_N1, next_N1)
    return least_N1


# -- Strategies --------------------------------------------------------------------------------------------------------


def none_keys(nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None) -> Float[Array, "B N 1"]:
    """Return zero keys, which isolate every node."""
    del parts_BN
    return _constant(nodes_BND, 0.0)


def full_keys(nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None) -> Float[Array, "B N 1"]:
    """Return constant keys, which connect every position to all positions."""
    del parts_BN
    return _constant(nodes_BND, 1.0)


def _constant(nodes_BND: Array, value: float) -> Array:
    batch, nodes, _ = nodes_BND.shape
    one_N1 = jnp.full((nodes, 1), value, nodes_BND.dtype)
    return jnp.broadcast_to(one_N1, (batch, nodes, 1))  # jax2onnx cannot fill an array with a symbolic batch size


def part_keys(nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None) -> Float[Array, "B N N"]:
    """Return the one-hot encoded index of each position."""
    del parts_BN
    batch, nodes, _ = nodes_BND.shape
    return jnp.broadcast_to(jnp.eye(nodes, dtype=nodes_BND.dtype), (batch, nodes, nodes))


def similarity_keys(nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None) -> Float[Array, "B N D"]:
    """Return the L2-normalised nodes, without gradient."""
    del parts_BN
    return jax.lax.stop_gradient(normalise(nodes_BND).astype(nodes_BND.dtype))


def semantic_keys(nodes_BND: Float[Array, "B N D"], parts_BN: Int[Array, "B N"] | None) -> Float[Array, "B N E"]:
    """Return the one-hot body part of each position, or zeros for background.

    Raises:
        UserError: if the images have no part labels.
    """
    if parts_BN is None:
        raise UserError(
            "semantic alignment: found images without part labels, expected one label a pixel; set config.data.parts "
            "to a folder of label files or choose another config.model.pair.alignment"
        )
    return jax.nn.one_hot(parts_BN, NUM_LABELS, dtype=nodes_BND.dtype).at[..., 0].set(0)


STRATEGIES.register("attention", Strategy("correspondence attention", learned=("intra", "cross")))
STRATEGIES.register("individual", Strategy("no cross-image graph", learned=("intra",)))
STRATEGIES.register("none", Strategy("no alignment", none_keys))
STRATEGIES.register("part", Strategy("part alignment", part_keys))
STRATEGIES.register("similarity", Strategy("top-K similarity", similarity_keys, top_k=True))
STRATEGIES.register("full", Strategy("fully connected", full_keys))
STRATEGIES.register("semantic", Strategy("semantic alignment", semantic_keys, needs_parts=True))


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
    """Compute the full graph of two images under an alignment strategy.

    Args:
        strategy: a name in STRATEGIES, or MODULE:NAME.
        nodes_u_ND: map of the target image, one row per position.
        nodes_v_MD: map of the contextual image; "part" requires the same number of positions.
        intra_weight_D: diagonal of W, ones by default. Only used by learned strategies.
        cross_weight_D: diagonal of W', ones by default. Only used by learned strategies.
        parts_u_N: body part of each position of u, or 0 for none. Only used by "semantic".
        parts_v_M: body part of each position of v, as for u.
        neighbours: K for "similarity".

    Returns:
        S_u, S_v and T_uv.

    Raises:
        UserError: if the strategy is unknown, if the keys of the two images differ in size (for "part", if the maps
            do), or if labels are missing for "semantic".

    Source: paper, equations 2-4, sections 4.3.1 and 4.3.2.
    """
    chosen = STRATEGIES.resolve(strategy)
    keys_u, keys_v = jnp.asarray(nodes_u_ND), jnp.asarray(nodes_v_MD)
    if chosen.rule is not None:
        labels = [None if parts is None else jnp.asarray(parts)[None] for parts in (parts_u_N, parts_v_M)]
        keys_u, keys_v = (chosen.rule(k[None], p)[0] for k, p in zip((keys_u, keys_v), labels, strict=True))
    if keys_u.shape[-1] != keys_v.shape[-1]:
        raise UserError(
            f"{strategy} alignment: found maps of {len(keys_u)} and {len(keys_v)} positions, expected the same number; "
            "resize"
        )
    ones_E = jnp.ones(keys_u.shape[-1], keys_u.dtype)
    given = {"intra": intra_weight_D, "cross": cross_weight_D}

    def weight(block: Block) -> Array:
        if chosen.rule is None and block not in chosen.learned:
            return jnp.zeros_like(ones_E)
        return ones_E if chosen.rule is not None or given[block] is None else jnp.asarray(given[block])

    nearest = neighbours if chosen.top_k else 0
    return Adjacency(
        connect(affinity_scores(keys_u, keys_u, weight("intra")), nearest),
        connect(affinity_scores(keys_v, keys_v, weight("intra")), nearest),
        connect(affinity_scores(keys_u, keys_v, weight("cross")), nearest),
    )
