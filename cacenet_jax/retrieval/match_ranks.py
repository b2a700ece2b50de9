"""Ranks of the gallery images that show the query's identity. All metrics are computed from them.

The metrics need the positions of a query's matches and its first K images, not the whole ranking. In a large gallery
the nearer images are counted for each match. In a small one, or with many matches, the distances are sorted, which is
many times faster than sorting indices: positions are looked up among them and ties are counted. Re-scoring permutes
only the first K positions, so these ranks also determine the metrics of the re-scored rankings.

Axes: B queries in a block, G gallery images, S of them with the query's identity, R of them left after
the camera filter, K candidates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Real

from cacenet_jax.errors import UserError

_COUNTED_GALLERY = 2048  # gallery images per match above which counting is faster than sorting
_MAX_COUNTED_TIES = 100  # above this, a stable index sort is faster than counting the ties before each image


class QueryStatistics(NamedTuple):
    """Per-query statistics from which the metrics are computed, as arrays over queries.

    Attributes:
        ap: average precision, float64; NaN for an invalid query.
        first_rank: 1-based rank of the first match; 0 for an invalid query.
        inp: inverse negative penalty, float64: the number of matches divided by the rank of the last one. NaN for an
            invalid query.
        valid: True if a match remains after the camera filter.
    """

    ap: np.ndarray
    first_rank: np.ndarray
    inp: np.ndarray
    valid: np.ndarray


class MatchRanks(NamedTuple):
    """Positions of the images with the query's identity in the ranked gallery.

    Attributes:
        position_S: 0-based positions among all gallery images, before the camera filter; ties keep gallery order.
        removed_S: True for images that the camera filter removes.
    """

    position_S: np.ndarray
    removed_S: np.ndarray


class RankedBlock(NamedTuple):
    """Ranking of a block of queries.

    Attributes:
        matches: match ranks of the B queries.
        candidates_BK: indices of each query's K nearest gallery images, nearest first; ties keep gallery order.
        distance_BK: distances of the candidates.
    """

    matches: list[MatchRanks]
    candidates_BK: np.ndarray
    distance_BK: np.ndarray


def rank_block(
    distance_BG: Real[np.ndarray, "B G"],
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    camera_filter: bool = True,
    first_query: int = 0,
    top_k: int = 0,
) -> RankedBlock:
    """Rank the gallery for a block of queries by ascending distance; ties keep gallery order.

    Args:
        distance_BG: distances of any real dtype; infinite values are allowed, NaN is not.
        query_pids: query identities, shape (B,).
        gallery_pids: gallery identities, shape (G,).
        query_camids: query cameras, shape (B,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: remove gallery images with the query's identity and camera.
        first_query: index of the block's first query, for error messages.
        top_k: K, at most G.

    Raises:
        UserError: a distance is NaN.
    """
    if distance_BG.dtype not in (np.float32, np.float64):  # sorting half precision is slow, and integers have no NaN
        distance_BG = distance_BG.astype(np.result_type(distance_BG.dtype, np.float32))
    matches = []
    candidates_BK = np.empty((len(distance_BG), top_k), np.int32)
    for row, distance_G in enumerate(distance_BG):
        if np.isnan(distance_G).any():
            raise UserError(
                f"the distances of query {first_query + row} hold NaN, which has no rank; expected "
                "numbers: check the embeddings for NaN and for division by a zero norm"
            )
        same_pid_S = np.flatnonzero(gallery_pids == query_pids[row])
        removed_S = camera_filter & (gallery_camids[same_pid_S] == query_camids[row])
        matches.append(MatchRanks(_positions(distance_G, same_pid_S), removed_S))
        if top_k:
            candidates_BK[row] = nearest_indices(distance_G, top_k)
    return RankedBlock(matches, candidates_BK, np.take_along_axis(distance_BG, candidates_BK, axis=1))


def nearest_indices(distance_G: Real[np.ndarray, "G"], count: int) -> Int[np.ndarray, "L"]:
    """Return the indices of the `count` smallest distances, in ascending order; ties keep gallery order.

    The count-th smallest distance of a part of the gallery is an upper bound of the count-th smallest of all, so only
    the images up to that bound are partitioned and sorted.

    Args:
        distance_G: distances without NaN.
        count: L, from 1 to G.
    """
    stride = max(
        1, math.isqrt(len(distance_G) // (6 * count))
    )  # balances the part's size and the images up to its bound
    bound = np.partition(distance_G[::stride], count - 1)[count - 1]
    near = np.flatnonzero(distance_G <= bound)
    distance_N = distance_G[near]
    if len(near) > count:
        kept_N = distance_N <= np.partition(distance_N, count - 1)[count - 1]
        near, distance_N = near[kept_N], distance_N[kept_N]
    return near[np.argsort(distance_N, kind="stable")[:count]]


def reorder_candidates(matches: MatchRanks, order_K: Int[np.ndarray, "K"]) -> MatchRanks:
    """Return the match ranks after permuting the first K positions of the ranking.

    Args:
        matches: match ranks before the permutation.
        order_K: permutation; `order_K[i]` is the old position of the image that moves to position i.
    """
    new_K = np.empty(len(order_K), np.int64)
    new_K[order_K] = np.arange(len(order_K))
    position_S, is_candidate_S = matches.position_S.copy(), matches.position_S < len(order_K)
    position_S[is_candidate_S] = new_K[position_S[is_candidate_S]]
    return MatchRanks(position_S, matches.removed_S)


def query_statistics(matches: Sequence[MatchRanks], ap: str = "step") -> QueryStatistics:
    """Compute the per-query statistics of the metrics.

    r_1 < ... < r_R are the ranks of the R matches after the camera filter.

    The step form is AP = (1/R) sum_i i / r_i. The trapezoid form is AP = (1/R) sum_i (P(r_i) + P(r_i - 1)) / 2, where
    P(r) is the precision of the first r images and P(0) = 1.

    Args:
        matches: match ranks of each query.
        ap: "step" or "trapezoid".
    """
    count = len(matches)
    result = QueryStatistics(
        ap=np.full(count, np.nan),
        first_rank=np.zeros(count, np.int64),
        inp=np.full(count, np.nan),
        valid=np.zeros(count, bool),
    )
    for row, (position_S, removed_S) in enumerate(matches):
        position_R = np.sort(position_S[~removed_S])
        if not position_R.size:
            continue
        rank_R = position_R + 1 - np.searchsorted(np.sort(position_S[removed_S]), position_R)
        retrieved_R = np.arange(1, rank_R.size + 1)
        precision_R = retrieved_R / rank_R
        if ap == "trapezoid":
            before_R = np.where(rank_R > 1, (retrieved_R - 1) / np.maximum(rank_R - 1, 1), 1.0)
            precision_R = (precision_R + before_R) / 2
        result.ap[row] = precision_R.mean()
        result.first_rank[row] = rank_R[0]
        result.inp[row] = rank_R.size / rank_R[-1]
        result.valid[row] = True
    return result


def _positions(distance_G: np.ndarray, index_S: np.ndarray) -> np.ndarray:
    """Return the 0-based positions of the gallery images `index_S` in a stable sort by distance."""
    if len(index_S) * _COUNTED_GALLERY <= len(distance_G):
        return _counted_positions(distance_G, index_S)
    sorted_G = np.sort(distance_G)
    position_S = np.searchsorted(sorted_G, distance_G[index_S], side="left")
    end_S = np.searchsorted(sorted_G, distance_G[index_S], side="right")
    tied = np.flatnonzero(end_S - position_S > 1)
    if tied.size > _MAX_COUNTED_TIES:
        position_G = np.empty(len(distance_G), np.int64)
        position_G[np.argsort(distance_G, kind="stable")] = np.arange(len(distance_G))
        return position_G[index_S]
    for s in tied:
        position_S[s] += np.count_nonzero(distance_G[: index_S[s]] == distance_G[index_S[s]])
    return position_S


def _counted_positions(distance_G: np.ndarray, index_S: np.ndarray) -> np.ndarray:
    """Count the images that precede each one: those that are nearer, and those as near that come first in the gallery."""
    position_S = np.empty(len(index_S), np.int64)
    for s, index in enumerate(index_S.tolist()):
        before = np.count_nonzero(distance_G[:index] <= distance_G[index])
        position_S[s] = before + np.count_nonzero(distance_G[index:] < distance_G[index])
    return position_S
