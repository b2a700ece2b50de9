"""Re-scoring: the best candidates of each query are ranked again by their conditional embeddings (paper section 3.5).

Legend: Q queries, G gallery images, K re-scored candidates of a query.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

PairDistance = Callable[[Any, Any], Any]


class Features(NamedTuple):
    """What retrieval keeps of a set of images.

    Attributes:
        embedding: L2-normalised f(I), (n, F) float32.
        terms: per-image terms of the pair stage, a pytree of arrays with leading axis n; None without the pair stage.
    """

    embedding: np.ndarray
    terms: Any


def nearest(distance_QG: Float[np.ndarray, "Q G"], count: int) -> Int[np.ndarray, "Q K"]:
    """The `count` closest gallery images of each query, exact, ascending, equal distances in gallery order."""
    if count >= distance_QG.shape[1]:
        return np.argsort(distance_QG, axis=1, kind="stable")
    bound_Q = np.partition(distance_QG, count - 1, axis=1)[:, count - 1]
    rows = []
    for distance_G, bound in zip(distance_QG, bound_Q, strict=True):
        candidates = np.flatnonzero(distance_G <= bound)
        rows.append(candidates[np.argsort(distance_G[candidates], kind="stable")][:count])
    return np.stack(rows)


def reorder(
    distance_QG: Float[np.ndarray, "Q G"], candidates_QK: Int[np.ndarray, "Q K"], score_QK: Float[np.ndarray, "Q K"]
) -> Float[np.ndarray, "Q G"]:
    """Distances whose order puts the candidates first, by their score, and leaves the others as they were.

    Args:
        distance_QG: individual distances, -1 or more.
        candidates_QK: the re-scored gallery images of each query, in the order of their individual distances.
        score_QK: their new distances; equal ones keep the individual order.

    Returns:
        A copy in which the candidates carry -K-1 .. -2 by rank: a re-scored image never falls behind one that was not.
    """
    count = candidates_QK.shape[1]
    order_QK = np.argsort(score_QK, axis=1, kind="stable")
    result_QG = distance_QG.copy()
    ranks_K = np.arange(count, dtype=distance_QG.dtype) - count - 1
    np.put_along_axis(result_QG, np.take_along_axis(candidates_QK, order_QK, axis=1), ranks_K[None], axis=1)
    return result_QG


class Rescorer:
    """Pair distances of queries and their candidates, in calls of one compiled shape.

    Attributes:
        pair_distance: distance of two images from their per-image terms, a scalar function that jax can map.
        pairs_per_call: pairs of one device call, which bounds the memory.
    """

    def __init__(self, pair_distance: PairDistance, pairs_per_call: int = 2048):
        """Maps pair_distance over the candidates of several queries."""
        self.pairs_per_call = pairs_per_call
        over_candidates = jax.vmap(pair_distance, (None, 0))
        self._grid = jax.jit(jax.vmap(over_candidates))

    def __call__(self, query: Any, gallery: Any, candidates_QK: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
        """Distances of each query and its candidates, (Q, K) float32.

        Args:
            query: terms of the queries, leading axis Q.
            gallery: terms of the whole gallery, leading axis G.
            candidates_QK: gallery images of each query.
        """
        num_queries, count = candidates_QK.shape
        per_call = max(self.pairs_per_call // count, 1)
        out_QK = np.empty((num_queries, count), np.float32)
        for start in range(0, num_queries, per_call):
            # The last call repeats a query until it is full, so that there is one compiled shape.
            rows = np.minimum(np.arange(start, start + per_call), num_queries - 1)
            block_u = jax.tree.map(lambda x, rows=rows: x[rows], query)
            block_v = jax.tree.map(lambda x, rows=rows: x[candidates_QK[rows]], gallery)
            stop = min(start + per_call, num_queries)
            out_QK[start:stop] = np.asarray(self._grid(block_u, block_v))[: stop - start]
        return out_QK
