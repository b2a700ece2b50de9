"""Evaluation: individual ranking, conditional re-scoring, metrics of every ranking.

The gallery is sorted once for each query, by individual distances, block by block; memory does not grow with queries x
gallery. What re-scoring changes is the order of the first K places, so that every further ranking costs next to nothing.
Several processes rank a share of the queries each.

Legend: Q queries, G gallery images, K re-scored candidates, F embedding size.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.match_ranks import Places, QueryStatistics, own_places, place_statistics, rescored
from cacenet_jax.retrieval.metrics import summarise

METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
_BLOCK_ELEMENTS = 2**22  # distances of one block of queries

# Candidates (Q, K) to their pair distances (Q, K).
Rescore = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to rank.

    Attributes:
        top_k: candidates of each query that are re-scored; cut to the gallery with a warning.
        camera_filter: whether gallery images of the query's identity and camera are removed.
        mix: weight of the pair distance in the mixed ranking, the rest weighs the individual distance.
        query_block: queries ranked at a time, 0 for what the size of the gallery suggests.
    """

    top_k: int = 100
    camera_filter: bool = True
    mix: float = 0.5
    query_block: int = 0


class Labelled(NamedTuple):
    """A set of images with its labels.

    Attributes:
        embedding: L2-normalised f(I), (n, F).
        pids: identities, (n,).
        camids: cameras, (n,).
    """

    embedding: Float[np.ndarray, "n F"]
    pids: Int[np.ndarray, "n"]
    camids: Int[np.ndarray, "n"]


class RankedLists(NamedTuple):
    """The beginning of every query's ranking, and what the whole of it is worth.

    Attributes:
        order_QL: gallery images, the best first, without those that the camera filter removes; -1 past the last one.
        statistics: of the whole ranking.
    """

    order_QL: Int[np.ndarray, "Q L"]
    statistics: QueryStatistics


class _Ranked(NamedTuple):
    """The individual ranking.

    Attributes:
        places: of this process's queries.
        candidates_QK: the first K images of all queries, in every process.
        distance_QK: individual distances of the candidates, of all queries.
    """

    places: list[Places]
    candidates_QK: np.ndarray
    distance_QK: np.ndarray


def cosine_distance(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]
) -> Float[np.ndarray, "Q G"]:
    """1 - cosine similarity of L2-normalised embeddings, rounded to the type of the queries.

    With the gallery in float64 the sums are exact to that rounding, so that a distance does not depend on which images are
    compared at a time: a BLAS sums the edge of a block in another order, and equal images would part.
    """
    cosine_QG = (query_QF.astype(gallery_GF.dtype) @ gallery_GF.T).astype(query_QF.dtype, copy=False)
    return np.subtract(1, cosine_QG, out=cosine_QG)


def nearest(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"], count: int
) -> tuple[Int[np.ndarray, "Q L"], Float[np.ndarray, "Q L"]]:
    """Nearest gallery images of each query by `cosine_distance`, the order of the individual ranking.

    Args:
        query_QF: L2-normalised embeddings.
        gallery_GF: the same of the gallery, at least one.
        count: L, cut to G.

    Returns:
        Gallery images in ascending distance, equal distances in gallery order, and their distances.
    """
    count = min(count, len(gallery_GF))
    order_QL = np.empty((len(query_QF), count), np.int64)
    distance_QL = np.empty((len(query_QF), count), query_QF.dtype)
    wide_GF = gallery_GF.astype(np.float64)
    size = max(1, _BLOCK_ELEMENTS // len(gallery_GF))
    for start in range(0, len(query_QF), size):
        for row, distance_G in enumerate(cosine_distance(query_QF[start : start + size], wide_GF), start):
            close = np.flatnonzero(distance_G <= np.partition(distance_G, count - 1)[count - 1])
            order_QL[row] = close[np.argsort(distance_G[close], kind="stable")[:count]]
            distance_QL[row] = distance_G[order_QL[row]]
    return order_QL, distance_QL


def mixed_distance(
    pair_QK: Float[np.ndarray, "Q K"], distance_QK: Float[np.ndarray, "Q K"], weight: float
) -> Float[np.ndarray, "Q K"]:
    """Weighted mean of pair and individual distances, which re-scored candidates are ordered by."""
    return weight * pair_QK + (1 - weight) * distance_QK


def check_sizes(num_query: int, num_gallery: int) -> None:
    """Raises UserError where one side of an evaluation is empty."""
    if not num_query or not num_gallery:
        raise UserError(
            f"evaluation: found {num_query} queries and {num_gallery} gallery images, expected at least one of each; "
            "a validation split needs identities with two images of one camera: raise config.data.val_share or set it to 0"
        )


def evaluate(
    query: Labelled, gallery: Labelled, rescore: Rescore | None, settings: Settings, mixes: Sequence[float] = ()
) -> dict[str, Any]:
    """Metrics of the individual, the conditional and the mixed ranking; every process calls it and gets all of them.

    Args:
        query: query images.
        gallery: gallery images.
        rescore: distances of each query and its candidates; None ranks by individual features alone.
        settings: how to rank.
        mixes: further weights of the pair distance to score, to choose settings.mix on validation data.

    Returns:
        "individual" and, with `rescore`, "conditional" and "mixed" metrics, each a dictionary of fractions of 1;
        "top_k", "num_query", "num_gallery", "num_valid"; "mAP_by_mix" with `mixes`.

    Raises:
        UserError: there is no query or no gallery image, or no query has a match left.
    """
    num_query, num_gallery = len(query.pids), len(gallery.pids)
    top_k = _candidates(settings, num_query, num_gallery)
    ranked = _rank(query, gallery, settings, top_k)
    summaries = {"individual": _summary(ranked.places, num_query)}
    weights = {"conditional": 1.0, "mixed": settings.mix, **{f"mix={m}": m for m in mixes}}
    if rescore is not None:
        pair_QK = rescore(ranked.candidates_QK)
        for name, weight in weights.items():
            order_QK = _reorder(pair_QK, ranked.distance_QK, weight)
            summaries[name] = _summary(_rescored(ranked.places, order_QK), num_query)
    result: dict[str, Any] = {
        name: {metric: summaries[name][metric] for metric in METRICS}
        for name in ("individual", "conditional", "mixed")
        if name in summaries
    }
    if rescore is not None and mixes:
        result["mAP_by_mix"] = {str(m): summaries[f"mix={m}"]["mAP"] for m in mixes}
    counts = {"top_k": top_k, "num_query": num_query, "num_gallery": num_gallery}
    return result | counts | {"num_valid": summaries["individual"]["num_valid"]}


def ranked_lists(
    query: Labelled, gallery: Labelled, rescore: Rescore | None, settings: Settings, length: int
) -> dict[str, RankedLists]:
    """The first images of every query's ranking, for whoever shows them; every process gets all of them.

    Args:
        query: query images.
        gallery: gallery images.
        rescore: as in `evaluate`, as everything else: the lists are those that it scores.
        settings: how to rank.
        length: L, images of a list.

    Returns:
        "individual" and, with `rescore`, "conditional" and "mixed".

    Raises:
        UserError: there is no query or no gallery image.
    """
    num_query, num_gallery = len(query.pids), len(gallery.pids)
    top_k = _candidates(settings, num_query, num_gallery)
    # What the filter may remove from a list is read on top of its length; what is re-scored is read in any case.
    seen = np.unique(np.stack([gallery.pids, gallery.camids]), axis=1, return_counts=True)[1]
    spare = int(seen.max()) if settings.camera_filter else 0
    ranked = _rank(query, gallery, settings, min(max(top_k, length + spare), num_gallery))

    def lists(order_QK: np.ndarray, places: list[Places]) -> RankedLists:
        own_QK = gallery.pids[order_QK] == query.pids[:, None]
        removed_QK = settings.camera_filter & own_QK & (gallery.camids[order_QK] == query.camids[:, None])
        kept_QK = np.take_along_axis(order_QK, np.argsort(removed_QK, axis=1, kind="stable"), axis=1)
        past_QK = np.arange(order_QK.shape[1]) >= (~removed_QK).sum(axis=1, keepdims=True)
        cut_QL = np.where(past_QK, -1, kept_QK)[:, :length]
        return RankedLists(np.pad(cut_QL, ((0, 0), (0, length - cut_QL.shape[1])), constant_values=-1),
                           _statistics(places, num_query))  # fmt: skip

    found = {"individual": lists(ranked.candidates_QK, ranked.places)}
    if rescore is not None:
        first_QK, rest_QR = ranked.candidates_QK[:, :top_k], ranked.candidates_QK[:, top_k:]
        pair_QK = rescore(first_QK)
        for name, weight in {"conditional": 1.0, "mixed": settings.mix}.items():
            order_QK = _reorder(pair_QK, ranked.distance_QK[:, :top_k], weight)
            whole_QN = np.concatenate([np.take_along_axis(first_QK, order_QK, axis=1), rest_QR], axis=1)
            found[name] = lists(whole_QN, _rescored(ranked.places, order_QK))
    return found


def _candidates(settings: Settings, num_query: int, num_gallery: int) -> int:
    """How many images of each query are re-scored."""
    check_sizes(num_query, num_gallery)
    if settings.top_k > num_gallery and jax.process_index() == 0:
        logging.warning("config.eval.top_k: found %d, cut to the %d images of the gallery", settings.top_k, num_gallery)
    return min(settings.top_k, num_gallery)


def _reorder(pair_QK: np.ndarray, distance_QK: np.ndarray, weight: float) -> np.ndarray:
    """Which place each of the first K places takes its image from, of all queries."""
    score_QK = mixed_distance(pair_QK, distance_QK, weight)
    return np.argsort(score_QK, axis=1, kind="stable")  # equal scores keep the individual order


def _rescored(places: list[Places], order_QK: np.ndarray) -> list[Places]:
    """The places of this process's queries after re-scoring."""
    mine_QK = order_QK[_share(len(order_QK))]
    return [rescored(before, order_K) for before, order_K in zip(places, mine_QK, strict=True)]


def _rank(query: Labelled, gallery: Labelled, settings: Settings, top_k: int) -> _Ranked:
    """The individual ranking of this process's share of the queries, the first images of all."""
    num_query = len(query.pids)
    size = settings.query_block or max(1, _BLOCK_ELEMENTS // len(gallery.pids))
    mine = _share(num_query)
    embedding_GF = gallery.embedding.astype(np.float64)

    def block(start: int) -> Any:
        rows = slice(start, min(start + size, mine.stop))
        return own_places(
            cosine_distance(query.embedding[rows], embedding_GF),
            query.pids[rows], gallery.pids, query.camids[rows], gallery.camids,
            camera_filter=settings.camera_filter, first_query=start, top_k=top_k,
        )  # fmt: skip

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        blocks = list(pool.map(block, range(mine.start, mine.stop, size)))
    empty = [(np.empty((0, top_k), np.int32), np.empty((0, top_k), np.result_type(query.embedding, np.float32)))]
    candidates, distances = zip(*(empty + [(found.candidates_BK, found.distance_BK) for found in blocks]))
    return _Ranked(
        [places for found in blocks for places in found.places],
        _join(np.concatenate(candidates), num_query),
        _join(np.concatenate(distances), num_query),
    )


def _statistics(places: list[Places], num_query: int) -> QueryStatistics:
    """Of all queries from the places of this process's."""
    return QueryStatistics(*(_join(field, num_query) for field in place_statistics(places)))


def _summary(places: list[Places], num_query: int) -> dict[str, float | int]:
    """Metrics of all queries from the places of this process's."""
    return summarise(_statistics(places, num_query))


def _share(num_query: int) -> slice:
    """The queries that this process ranks."""
    size = -(-num_query // jax.process_count())
    start = min(jax.process_index() * size, num_query)
    return slice(start, min(start + size, num_query))


def _join(mine: np.ndarray, num_query: int) -> np.ndarray:
    """Rows of all queries from each process's share, bit by bit the same in every process."""
    if jax.process_count() == 1:
        return mine
    size = -(-num_query // jax.process_count())
    padded = np.zeros((size, *mine.shape[1:]), mine.dtype)
    padded[: len(mine)] = mine
    # As bytes: JAX would round float64 to float32.
    words = np.frombuffer(padded.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(words))
    return np.frombuffer(gathered.tobytes(), mine.dtype).reshape(-1, *mine.shape[1:])[:num_query]


def table(result: dict[str, Any]) -> str:
    """The metrics of every ranking as a text table in per cent."""
    lines = [f"{'ranking':<12}" + "".join(f"{metric:>9}" for metric in METRICS)]
    for name in ("individual", "conditional", "mixed"):
        if name in result:
            lines.append(f"{name:<12}" + "".join(f"{100 * result[name][metric]:>9.2f}" for metric in METRICS))
    lines.append(
        f"{result['num_query']} queries ({result['num_valid']} with a match), {result['num_gallery']} gallery images"
        + (f", top {result['top_k']} re-scored" if "conditional" in result else "")
    )
    return "\n".join(lines)
