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
from cacenet_jax.retrieval.places import Places, QueryStatistics, own_places, place_statistics, rescored
from cacenet_jax.retrieval.ranking import summarise

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


class _Ranked(NamedTuple):
    """The individual ranking.

    Attributes:
        places: of this process's queries.
        candidates_QK: of all queries, in every process.
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
    check_sizes(num_query, num_gallery)
    top_k = min(settings.top_k, num_gallery)
    if top_k < settings.top_k and jax.process_index() == 0:
        logging.warning("config.eval.top_k: found %d, cut to the %d images of the gallery", settings.top_k, num_gallery)
    ranked = _rank(query, gallery, settings, top_k)
    summaries = {"individual": _summary(ranked.places, num_query)}
    weights = {"conditional": 1.0, "mixed": settings.mix, **{f"mix={m}": m for m in mixes}}
    if rescore is not None:
        pair_QK = rescore(ranked.candidates_QK)
        for name, weight in weights.items():
            score_QK = (weight * pair_QK + (1 - weight) * ranked.distance_QK)[_share(num_query)]
            order_QK = np.argsort(score_QK, axis=1, kind="stable")  # equal scores keep the individual order
            places = [rescored(before, order_K) for before, order_K in zip(ranked.places, order_QK, strict=True)]
            summaries[name] = _summary(places, num_query)
    result: dict[str, Any] = {
        name: {metric: summaries[name][metric] for metric in METRICS}
        for name in ("individual", "conditional", "mixed")
        if name in summaries
    }
    if rescore is not None and mixes:
        result["mAP_by_mix"] = {str(m): summaries[f"mix={m}"]["mAP"] for m in mixes}
    counts = {"top_k": top_k, "num_query": num_query, "num_gallery": num_gallery}
    return result | counts | {"num_valid": summaries["individual"]["num_valid"]}


def _rank(query: Labelled, gallery: Labelled, settings: Settings, top_k: int) -> _Ranked:
    """The individual ranking of this process's share of the queries, the candidates of all."""
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


def _summary(places: list[Places], num_query: int) -> dict[str, float | int]:
    """Metrics of all queries from the places of this process's."""
    return summarise(QueryStatistics(*(_join(field, num_query) for field in place_statistics(places))))


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
