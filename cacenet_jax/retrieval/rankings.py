"""Individual, conditional and mixed rankings of a labelled gallery, and their metrics.

The individual ranking sorts the gallery by the distance of embeddings. The conditional ranking re-orders its first K
images by pair distance, and the mixed ranking by a weighted mean of both distances. A re-ranking method, such as
k-reciprocal encoding, adds rankings that start from its distances instead.

The gallery is ranked once per query, in blocks of queries, so the Q x G distance matrix is never stored. Re-scoring
permutes only the first K positions, so the other two rankings cost little beyond scoring the pairs. With several
processes, each process ranks a share of the queries.

Legend: Q queries, G gallery images, K re-scored candidates, F embedding size.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.distances import DISTANCES, cosine_distance, rerank
from cacenet_jax.retrieval.match_ranks import (
    MatchRanks,
    QueryStatistics,
    RankedBlock,
    nearest_indices,
    query_statistics,
    rank_block,
    reorder_candidates,
)
from cacenet_jax.retrieval.metrics import summarise
from cacenet_jax.retrieval.query_share import gather_queries, process_queries

RANKINGS = ("individual", "conditional", "mixed")
NO_RERANKING = "none"
METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
_BLOCK_ELEMENTS = 2**26  # number of distances in a block of queries, 256 MiB in float32
_MIN_QUERIES, _MAX_QUERIES = 32, 512  # per block, however large or small the gallery is
_TASK_QUERIES = 8  # number of queries that a thread ranks at a time

# Indices of candidates (Q, K) -> pair distances (Q, K).
Rescore = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Ranking options.

    Attributes:
        top_k: number of candidates to re-score per query; reduced to the gallery size with a warning.
        camera_filter: remove gallery images with the query's identity and camera.
        mix: weight of the pair distance in the mixed ranking; the individual distance has weight 1 - mix.
        query_block: number of queries ranked at a time; 0 derives it from the gallery size.
        distance: distance of embeddings, a name in `distances.DISTANCES`.
        rerank: re-ranking method, a name in `distances.RERANKINGS`, or "none".
    """

    top_k: int = 100
    camera_filter: bool = True
    mix: float = 0.5
    query_block: int = 0
    distance: str = "cosine"
    rerank: str = NO_RERANKING


class LabelledSet(NamedTuple):
    """Embeddings and labels of a set of images.

    Attributes:
        embedding: f(I), shape (n, F), L2-normalised for the cosine distance.
        pids: identities, shape (n,).
        camids: cameras, shape (n,).
    """

    embedding: Float[np.ndarray, "n F"]
    pids: Int[np.ndarray, "n"]
    camids: Int[np.ndarray, "n"]


class RankedLists(NamedTuple):
    """First L images of each query's ranking, and statistics of the full ranking.

    Attributes:
        order_QL: indices of gallery images after the camera filter, best first, padded with -1.
        individual_QL: individual distances of these images; NaN for padding, as in `pair_QL`.
        pair_QL: their pair distances; NaN for images that are not re-scored.
        statistics: per-query statistics of the full ranking.
    """

    order_QL: Int[np.ndarray, "Q L"]
    individual_QL: Float[np.ndarray, "Q L"]
    pair_QL: Float[np.ndarray, "Q L"]
    statistics: QueryStatistics


class _IndividualRanking(NamedTuple):
    """Ranking by individual distance.

    Attributes:
        matches: match ranks of this process's queries.
        candidates_QK: indices of the first K gallery images of every query, available in all processes.
        distance_QK: individual distances from every query to its candidates, available in all processes.
    """

    matches: list[MatchRanks]
    candidates_QK: np.ndarray
    distance_QK: np.ndarray


def _block_size(num_gallery: int) -> int:
    """Return the number of queries per block: few enough for memory, enough to convert a large gallery rarely."""
    return min(max(_MIN_QUERIES, _BLOCK_ELEMENTS // num_gallery), _MAX_QUERIES)


def nearest(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"], count: int
) -> tuple[Int[np.ndarray, "Q L"], Float[np.ndarray, "Q L"]]:
    """Find the nearest gallery images of each query by `cosine_distance`, in the order of the individual ranking.

    Args:
        query_QF: L2-normalised query embeddings.
        gallery_GF: L2-normalised gallery embeddings, at least one.
        count: L, reduced to G if larger.

    Returns:
        Indices of the gallery images by ascending distance, with ties in gallery order, and their distances.
    """
    count = min(count, len(gallery_GF))
    order_QL = np.empty((len(query_QF), count), np.int64)
    distance_QL = np.empty((len(query_QF), count), query_QF.dtype)
    size = _block_size(len(gallery_GF))
    starts = range(0, len(query_QF), size)
    for start in track(starts, "ranking", len(starts), f"blocks of {size} queries"):
        for row, distance_G in enumerate(cosine_distance(query_QF[start : start + size], gallery_GF), start):
            order_QL[row] = nearest_indices(distance_G, count)
            distance_QL[row] = distance_G[order_QL[row]]
    return order_QL, distance_QL


def mixed_distance(
    pair_QK: Float[np.ndarray, "Q K"], distance_QK: Float[np.ndarray, "Q K"], weight: float
) -> Float[np.ndarray, "Q K"]:
    """Compute the weighted mean of pair and individual distances, which determines the order of re-scored images."""
    return weight * pair_QK + (1 - weight) * distance_QK


def check_sizes(num_query: int, num_gallery: int) -> None:
    """Raise UserError if there are no queries or no gallery images."""
    if not num_query or not num_gallery:
        raise UserError(
            f"evaluation: found {num_query} queries and {num_gallery} gallery images, expected at least one of each; "
            "a validation split needs identities with two images of one camera: raise config.data.val_share or set it to 0"
        )


def evaluate(
    query: LabelledSet, gallery: LabelledSet, rescore: Rescore | None, settings: Settings, mixes: Sequence[float] = ()
) -> dict[str, Any]:
    """Compute the metrics of the individual, conditional and mixed rankings.

    Every process must call this function.

    Args:
        query: query images.
        gallery: gallery images.
        rescore: function from candidates to pair distances; None ranks by individual distance only.
        settings: ranking options.
        mixes: additional weights of the pair distance to evaluate, for choosing settings.mix on validation data, which
            is not re-ranked.

    Returns:
        Dictionary with the metrics, as fractions of 1, under "individual" and, given `rescore`, "conditional" and
        "mixed"; with a re-ranking method also under "individual, METHOD" and, given `rescore`, "mixed, METHOD", with
        the cost of re-ranking (`distances.rerank`). It also contains the counts "top_k", "num_query",
        "num_gallery" and "num_valid" and, given `rescore` and `mixes`, "mAP_by_mix".

    Raises:
        UserError: there are no queries or no gallery images, or no query has a match left after the camera filter.
    """
    num_query, num_gallery = len(query.pids), len(gallery.pids)
    top_k = _num_candidates(settings, num_query, num_gallery)
    ranking = _rank(query, gallery, settings, top_k, _distances(query, gallery, settings))
    summaries = {"individual": _summarise_all(ranking.matches, num_query)}
    weights = {"conditional": 1.0, "mixed": settings.mix, **{f"mix={m}": m for m in mixes}}
    if rescore is not None:
        pair_QK = rescore(ranking.candidates_QK)
        for name, weight in weights.items():
            order_QK = _mixed_order(pair_QK, ranking.distance_QK, weight)
            summaries[name] = _summarise_all(_reorder_all(ranking.matches, order_QK), num_query)
    result: dict[str, Any] = {}
    if settings.rerank != NO_RERANKING and not mixes:
        reranked_QG, cost = rerank(settings.rerank, query.embedding, gallery.embedding)
        result |= cost
        ranking = _rank(query, gallery, settings, top_k, lambda start, stop: reranked_QG[start:stop])
        summaries[f"individual, {settings.rerank}"] = _summarise_all(ranking.matches, num_query)
        if rescore is not None:
            order_QK = _mixed_order(rescore(ranking.candidates_QK), ranking.distance_QK, settings.mix)
            matches = _reorder_all(ranking.matches, order_QK)
            summaries[f"mixed, {settings.rerank}"] = _summarise_all(matches, num_query)
    result |= {
        name: {metric: summary[metric] for metric in METRICS}
        for name, summary in summaries.items()
        if name.partition(",")[0] in RANKINGS
    }
    if rescore is not None and mixes:
        result["mAP_by_mix"] = {str(m): summaries[f"mix={m}"]["mAP"] for m in mixes}
    counts = {"top_k": top_k, "num_query": num_query, "num_gallery": num_gallery}
    return result | counts | {"num_valid": summaries["individual"]["num_valid"]}


def ranked_lists(
    query: LabelledSet, gallery: LabelledSet, rescore: Rescore | None, settings: Settings, length: int
) -> dict[str, RankedLists]:
    """Return the first `length` images of the rankings that `evaluate` scores, for every query.

    Every process must call this function.

    Args:
        query: query images.
        gallery: gallery images.
        rescore: as in `evaluate`.
        settings: ranking options.
        length: L, length of the lists.

    Returns:
        Dictionary of ranked lists under "individual" and, given `rescore`, "conditional" and "mixed".

    Raises:
        UserError: there are no queries or no gallery images.
    """
    num_query, num_gallery = len(query.pids), len(gallery.pids)
    top_k = _num_candidates(settings, num_query, num_gallery)
    # Rank enough images to fill a list after the camera filter, but no fewer than are re-scored.
    own = np.isin(gallery.pids, query.pids)  # the filter removes no distractors, however many there are
    seen = np.unique(np.stack([gallery.pids, gallery.camids])[:, own], axis=1, return_counts=True)[1]
    spare = int(seen.max(initial=0)) if settings.camera_filter else 0
    deep = min(max(top_k, length + spare), num_gallery)
    ranking = _rank(query, gallery, settings, deep, _distances(query, gallery, settings))

    pair_QK: np.ndarray = np.full(ranking.distance_QK.shape, np.nan, np.float32)  # of all ranked, in individual order
    if rescore is not None:
        pair_QK[:, :top_k] = rescore(ranking.candidates_QK[:, :top_k])

    def ranked_list(place_QK: np.ndarray, matches: list[MatchRanks]) -> RankedLists:
        order_QK = np.take_along_axis(ranking.candidates_QK, place_QK, axis=1)
        own_QK = gallery.pids[order_QK] == query.pids[:, None]
        removed_QK = settings.camera_filter & own_QK & (gallery.camids[order_QK] == query.camids[:, None])
        kept_QL = np.argsort(removed_QK, axis=1, kind="stable")[:, :length]
        past_QL = np.arange(kept_QL.shape[1]) >= (~removed_QK).sum(axis=1, keepdims=True)
        place_QL = np.take_along_axis(place_QK, kept_QL, axis=1)

        def cut(values_QK: np.ndarray, padding: int | float) -> np.ndarray:
            cut_QL = np.where(past_QL, padding, np.take_along_axis(values_QK, place_QL, axis=1))
            return np.pad(cut_QL, ((0, 0), (0, length - place_QL.shape[1])), constant_values=padding)

        return RankedLists(
            cut(ranking.candidates_QK, -1), cut(ranking.distance_QK, np.nan), cut(pair_QK, np.nan),
            _gather_statistics(matches, num_query),
        )  # fmt: skip

    all_QK = np.broadcast_to(np.arange(pair_QK.shape[1]), pair_QK.shape)
    lists = {"individual": ranked_list(all_QK, ranking.matches)}
    if rescore is not None:
        for name, weight in {"conditional": 1.0, "mixed": settings.mix}.items():
            order_QK = _mixed_order(pair_QK[:, :top_k], ranking.distance_QK[:, :top_k], weight)
            place_QK = np.concatenate([order_QK, all_QK[:, top_k:]], axis=1)
            lists[name] = ranked_list(place_QK, _reorder_all(ranking.matches, order_QK))
    return lists


def _num_candidates(settings: Settings, num_query: int, num_gallery: int) -> int:
    """Return K, the number of candidates per query, capped at the gallery size."""
    check_sizes(num_query, num_gallery)
    if settings.top_k > num_gallery and jax.process_index() == 0:
        logging.warning("config.eval.top_k: found %d, reduced to the %d gallery images", settings.top_k, num_gallery)
    return min(settings.top_k, num_gallery)


def _mixed_order(pair_QK: np.ndarray, distance_QK: np.ndarray, weight: float) -> np.ndarray:
    """Return the order that sorts each query's candidates by weight * pair + (1 - weight) * individual distance."""
    score_QK = mixed_distance(pair_QK, distance_QK, weight)
    return np.argsort(score_QK, axis=1, kind="stable")  # ties keep the individual order


def _reorder_all(matches: list[MatchRanks], order_QK: np.ndarray) -> list[MatchRanks]:
    """Return the match ranks of this process's queries after permuting their candidates."""
    local_QK = order_QK[process_queries(len(order_QK))]
    return [reorder_candidates(before, order_K) for before, order_K in zip(matches, local_QK, strict=True)]


def _distances(query: LabelledSet, gallery: LabelledSet, settings: Settings) -> Callable[[int, int], np.ndarray]:
    """Return a function from the first and the last query of a block, exclusive, to their individual distances."""
    distance = DISTANCES[settings.distance]
    return lambda start, stop: distance(query.embedding[start:stop], gallery.embedding)


def _rank(
    query: LabelledSet,
    gallery: LabelledSet,
    settings: Settings,
    top_k: int,
    distances: Callable[[int, int], np.ndarray],
) -> _IndividualRanking:
    """Rank this process's queries by distance and gather the candidates of all queries."""
    num_query = len(query.pids)
    size = settings.query_block or _block_size(len(gallery.pids))
    local = process_queries(num_query)

    def rank_queries(start: int, pool: Executor) -> list[RankedBlock]:
        # One product at a time, which BLAS itself spreads over the cores; then the cores share its queries.
        stop = min(start + size, local.stop)
        distance_BG = distances(start, stop)

        def rank_task(first: int) -> RankedBlock:
            rows = slice(first, min(first + _TASK_QUERIES, stop))
            return rank_block(
                distance_BG[rows.start - start : rows.stop - start],
                query.pids[rows], gallery.pids, query.camids[rows], gallery.camids,
                camera_filter=settings.camera_filter, first_query=first, top_k=top_k,
            )  # fmt: skip

        return list(pool.map(rank_task, range(start, stop, _TASK_QUERIES)))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        starts = range(local.start, local.stop, size)
        tracked = track(starts, "ranking", len(starts), f"blocks of {size} queries")
        blocks = [block for start in tracked for block in rank_queries(start, pool)]
    empty = [(np.empty((0, top_k), np.int32), np.empty((0, top_k), np.result_type(query.embedding, np.float32)))]
    candidates, nearest_distances = zip(*(empty + [(ranked.candidates_BK, ranked.distance_BK) for ranked in blocks]))
    return _IndividualRanking(
        [matches for ranked in blocks for matches in ranked.matches],
        gather_queries(np.concatenate(candidates), num_query),
        gather_queries(np.concatenate(nearest_distances), num_query),
    )


def _gather_statistics(matches: list[MatchRanks], num_query: int) -> QueryStatistics:
    """Gather per-query statistics from all processes."""
    return QueryStatistics(*(gather_queries(field, num_query) for field in query_statistics(matches)))


def _summarise_all(matches: list[MatchRanks], num_query: int) -> dict[str, float | int]:
    """Compute metrics over the queries of all processes."""
    return summarise(_gather_statistics(matches, num_query))
