"""Evaluation: features of query and gallery, individual ranking, conditional re-scoring, metrics of every ranking.

Takes functions, not models: `describe` turns a batch of uint8 images into `Features`, `pair_distance` scores a pair.
Works query block by query block, so that memory does not grow with queries x gallery.

Legend: Q queries, G gallery images, K re-scored candidates, F embedding size.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.ranking import QueryStatistics, ranking_statistics, summarise
from cacenet_jax.retrieval.rescore import Features, PairDistance, Rescorer, nearest, reorder

METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to rank.

    Attributes:
        top_k: candidates of each query that are re-scored; cut to the gallery with a warning.
        camera_filter: whether gallery images of the query's identity and camera are removed.
        mix: weight of the pair distance in the mixed ranking, the rest weighs the individual distance.
        pairs_per_call: pairs of one device call.
        query_block: queries ranked at a time.
    """

    top_k: int = 100
    camera_filter: bool = True
    mix: float = 0.5
    pairs_per_call: int = 2048
    query_block: int = 256


class Labelled(NamedTuple):
    """A set of images with its labels.

    Attributes:
        features: what retrieval keeps of them.
        pids: identities, (n,).
        camids: cameras, (n,).
    """

    features: Features
    pids: Int[np.ndarray, "n"]
    camids: Int[np.ndarray, "n"]


def allocate(shape: tuple[int, ...], dtype: Any, folder: str | os.PathLike, limit_bytes: int) -> np.ndarray:
    """An array in memory, or past the limit in a file under `folder` that is gone when the array is, or the process."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= limit_bytes:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:  # its name is gone at once, its content with the last mapping
        return np.memmap(file, dtype, "w+", shape=shape)


def extract(
    describe: Callable[[Any], Features],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    count: int,
    *,
    folder: str | os.PathLike = ".",
    limit_bytes: int = 4 << 30,
) -> Features:
    """Features of `count` images.

    Args:
        describe: uint8 images (B, H, W, 3) to their features.
        batches: images and their positions 0 .. count-1, -1 where an image only fills the batch.
        count: how many images there are.
        folder: where an array that is larger than limit_bytes lives, in a temporary file.
        limit_bytes: largest array that is held in memory.

    Returns:
        Features on the host, in the order of the positions.
    """
    store: Any = None
    for images, positions in batches:
        block = jax.tree.map(np.asarray, describe(images))
        if store is None:
            store = jax.tree.map(lambda x: allocate((count, *x.shape[1:]), x.dtype, folder, limit_bytes), block)
        real = positions >= 0
        for target, values in zip(jax.tree.leaves(store), jax.tree.leaves(block), strict=True):
            target[positions[real]] = values[real]
    return store


def cosine_distance(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]
) -> Float[np.ndarray, "Q G"]:
    """1 - cosine similarity of L2-normalised embeddings, in float32 on the host."""
    return 1 - query_QF @ gallery_GF.T


def evaluate(
    query: Labelled,
    gallery: Labelled,
    pair_distance: PairDistance | None,
    settings: Settings,
    mixes: Sequence[float] = (),
) -> dict[str, Any]:
    """Metrics of the individual, the conditional and the mixed ranking.

    Args:
        query: query images.
        gallery: gallery images.
        pair_distance: distance of a pair from the per-image terms; None ranks by individual features alone.
        settings: how to rank.
        mixes: further weights of the pair distance to score, to choose settings.mix on validation data.

    Returns:
        "individual" and, with a pair_distance, "conditional" and "mixed" metrics, each a dictionary of fractions of 1;
        "top_k", "num_query", "num_gallery", "num_valid"; "mAP_by_mix" with `mixes`.

    Raises:
        UserError: there is no query or no gallery image, or no query has a match left.
    """
    num_query, num_gallery = len(query.pids), len(gallery.pids)
    if not num_query or not num_gallery:
        raise UserError(
            f"evaluation: found {num_query} queries and {num_gallery} gallery images, expected at least one of each; "
            "a validation split needs identities with two images of one camera: raise config.data.val_share or set it to 0"
        )
    top_k = min(settings.top_k, num_gallery)
    if top_k < settings.top_k:
        logging.warning("config.eval.top_k: found %d, cut to the %d images of the gallery", settings.top_k, num_gallery)
    weights = {"conditional": 1.0, "mixed": settings.mix, **{f"mix={m}": m for m in mixes}}
    rescorer = None if pair_distance is None else Rescorer(pair_distance, settings.pairs_per_call)
    blocks: dict[str, list[QueryStatistics]] = {"individual": []}
    if rescorer:
        blocks |= {name: [] for name in weights}
    for start in range(0, num_query, settings.query_block):
        rows = slice(start, min(start + settings.query_block, num_query))
        distance_QG = cosine_distance(query.features.embedding[rows], gallery.features.embedding)

        def score(name: str, distances: np.ndarray, rows: slice = rows) -> None:
            labels = (query.pids[rows], gallery.pids, query.camids[rows], gallery.camids)
            blocks[name].append(ranking_statistics(distances, *labels, camera_filter=settings.camera_filter))

        score("individual", distance_QG)
        if rescorer:
            candidates_QK = nearest(distance_QG, top_k)
            terms = jax.tree.map(lambda x, rows=rows: x[rows], query.features.terms)
            pair_QK = rescorer(terms, gallery.features.terms, candidates_QK)
            individual_QK = np.take_along_axis(distance_QG, candidates_QK, axis=1)
            for name, weight in weights.items():
                score(name, reorder(distance_QG, candidates_QK, weight * pair_QK + (1 - weight) * individual_QK))
    joined = {name: QueryStatistics(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in blocks.items()}
    summaries = {name: summarise(statistics) for name, statistics in joined.items()}
    result: dict[str, Any] = {
        name: {metric: summaries[name][metric] for metric in METRICS}
        for name in ("individual", "conditional", "mixed")
        if name in summaries
    }
    if rescorer and mixes:
        result["mAP_by_mix"] = {str(m): summaries[f"mix={m}"]["mAP"] for m in mixes}
    counts = {"top_k": top_k, "num_query": num_query, "num_gallery": num_gallery}
    return result | counts | {"num_valid": summaries["individual"]["num_valid"]}


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
