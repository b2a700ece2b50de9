"""Places of a query's own identity in its ranking: all that a metric needs, and all that re-scoring changes.

A ranking is scored from the places of the few gallery images of the query's identity. Sorting values is many times faster
than sorting indices, so places are looked up in sorted values and ties are counted. Re-scoring orders the first K
places anew and leaves the others: every further ranking of the same query follows from these places alone.

Axes: B queries of one block, G gallery images, S gallery images of the query's identity, R of them relevant, K candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Real

from cacenet_jax.errors import UserError

_MAX_COUNTED_TIES = 100  # up to here counting the equal images before each is faster than a stable index sort


class QueryStatistics(NamedTuple):
    """What one query, or an array of queries, contributes to the metrics.

    Fields:
        ap: average precision, float64; NaN where the query is not valid.
        first_rank: rank of the first match, counted from 1; 0 where the query is not valid.
        inp: relevant images divided by the rank of the last of them, float64; NaN where the query is not
            valid.
        valid: whether a match is left after the camera filter.
    """

    ap: np.ndarray
    first_rank: np.ndarray
    inp: np.ndarray
    valid: np.ndarray


class Places(NamedTuple):
    """Where the gallery images of a query's identity stand.

    Attributes:
        place_S: places from 0 among all gallery images, before the camera filter, in the stable order.
        removed_S: which of them the camera filter removes.
    """

    place_S: np.ndarray
    removed_S: np.ndarray


class RankedBlock(NamedTuple):
    """A block of queries against the whole gallery.

    Attributes:
        places: of each query, B of them.
        candidates_BK: the K closest gallery images of each query, ascending, equal distances in gallery order.
        distance_BK: their distances.
    """

    places: list[Places]
    candidates_BK: np.ndarray
    distance_BK: np.ndarray


def own_places(
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
    """Ranks a block of queries by ascending distance; equal distances keep gallery order.

    Args:
        distance_BG: distances, any real type; infinite is allowed, NaN is not.
        query_pids: identities, (B,).
        gallery_pids: identities, (G,).
        query_camids: cameras, (B,).
        gallery_camids: cameras, (G,).
        camera_filter: whether gallery images of the query's identity and camera are removed.
        first_query: number of the block's first query, for messages.
        top_k: candidates to name, at most G.

    Raises:
        UserError: NaN among the distances.
    """
    num_gallery = distance_BG.shape[1]
    if distance_BG.dtype not in (np.float32, np.float64):  # half types sort slowly and integers have no NaN
        distance_BG = distance_BG.astype(np.result_type(distance_BG.dtype, np.float32))
    sorted_BG = np.sort(distance_BG, axis=1)
    if num_gallery and (nan_rows := np.flatnonzero(np.isnan(sorted_BG[:, -1]))).size:  # NaN sorts last
        raise UserError(
            f"the distances of query {first_query + nan_rows[0]} hold NaN, which has no rank; expected "
            "numbers: check the embeddings for NaN and for division by a zero norm"
        )
    places = []
    candidates_BK = np.empty((len(distance_BG), top_k), np.int32)
    for row, distance_G in enumerate(distance_BG):
        same_pid_S = np.flatnonzero(gallery_pids == query_pids[row])
        removed_S = camera_filter & (gallery_camids[same_pid_S] == query_camids[row])
        places.append(Places(_places(distance_G, sorted_BG[row], same_pid_S), removed_S))
        if top_k:
            close = np.flatnonzero(distance_G <= sorted_BG[row, top_k - 1])
            candidates_BK[row] = close[np.argsort(distance_G[close], kind="stable")[:top_k]]
    return RankedBlock(places, candidates_BK, sorted_BG[:, :top_k].copy())  # a view would keep all of it


def rescored(places: Places, order_K: Int[np.ndarray, "K"]) -> Places:
    """The places after the first K were put in another order; a re-scored image never falls behind one that was not.

    Args:
        places: before.
        order_K: which place each of the new first K places takes its image from.
    """
    new_K = np.empty(len(order_K), np.int64)
    new_K[order_K] = np.arange(len(order_K))
    place_S, inside_S = places.place_S.copy(), places.place_S < len(order_K)
    place_S[inside_S] = new_K[place_S[inside_S]]
    return Places(place_S, places.removed_S)


def place_statistics(places: Sequence[Places], ap: str = "step") -> QueryStatistics:
    """What each query contributes to the metrics.

    Step form: AP = (1/R) sum_i i / r_i. Trapezoid form: AP = (1/R) sum_i (P(r_i) + P(r_i - 1)) / 2 with P(r)
    the precision of the first r images and P(0) = 1.

    Args:
        places: of each query.
        ap: "step" or "trapezoid".
    """
    count = len(places)
    result = QueryStatistics(
        ap=np.full(count, np.nan),
        first_rank=np.zeros(count, np.int64),
        inp=np.full(count, np.nan),
        valid=np.zeros(count, bool),
    )
    for row, (place_S, removed_S) in enumerate(places):
        place_R = np.sort(place_S[~removed_S])
        if not place_R.size:
            continue
        rank_R = place_R + 1 - np.searchsorted(np.sort(place_S[removed_S]), place_R)
        found_R = np.arange(1, rank_R.size + 1)
        precision_R = found_R / rank_R
        if ap == "trapezoid":
            before_R = np.where(rank_R > 1, (found_R - 1) / np.maximum(rank_R - 1, 1), 1.0)
            precision_R = (precision_R + before_R) / 2
        result.ap[row] = precision_R.mean()
        result.first_rank[row] = rank_R[0]
        result.inp[row] = rank_R.size / rank_R[-1]
        result.valid[row] = True
    return result


def _places(distance_G: np.ndarray, sorted_G: np.ndarray, index_S: np.ndarray) -> np.ndarray:
    """Places from 0, in the stable order of one row, of the gallery images `index_S`."""
    place_S = np.searchsorted(sorted_G, distance_G[index_S], side="left")
    beyond_S = np.searchsorted(sorted_G, distance_G[index_S], side="right")
    tied = np.flatnonzero(beyond_S - place_S > 1)
    if tied.size > _MAX_COUNTED_TIES:
        place_G = np.empty(len(distance_G), np.int64)
        place_G[np.argsort(distance_G, kind="stable")] = np.arange(len(distance_G))
        return place_G[index_S]
    for s in tied:
        place_S[s] += np.count_nonzero(distance_G[: index_S[s]] == distance_G[index_S[s]])
    return place_S
