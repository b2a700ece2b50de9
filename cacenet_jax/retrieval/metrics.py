"""Ranking metrics of person re-identification: average precision, CMC and mINP.

Axes: Q queries, G gallery images, B queries in a block, S gallery images of the query's identity, R of them relevant.

`evaluate_ranking` takes a distance matrix. `evaluate_blocks` takes a function that computes blocks of its rows, for
matrices that do not fit in memory. Both process one block of queries at a time. match_ranks.py explains how rows are
ranked.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Integer, Real

from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.match_ranks import QueryStatistics, query_statistics, rank_block

Array = np.ndarray | jax.Array

# Name of the mean for each form of AP. The two forms differ by up to a percentage point, so they must not share a name.
MEAN_NAMES = {"step": "mAP", "trapezoid": "mAP_trapezoid"}
CMC_RANKS = (1, 5, 10)
CAMERA_FILTER_OPTION = "--config.eval.camera_filter=False"
_BLOCK_ELEMENTS = 2**20  # default number of distances in a block


# The axis names differ between arrays, so sizes are checked by the functions, whose error messages name both sides.
def evaluate_ranking(
    distance_QG: Real[Array, "Q G"],
    query_pids: Integer[Array, " query_pids"],
    gallery_pids: Integer[Array, " gallery_pids"],
    query_camids: Integer[Array, " query_camids"],
    gallery_camids: Integer[Array, " gallery_camids"],
    *,
    camera_filter: bool = True,
    ap: str = "step",
    block_size: int | None = None,
    num_threads: int = 2,
) -> dict[str, float | int]:
    """Compute mAP, CMC and mINP when the gallery is ranked by ascending distance.

    mAP = mean_q (1/R) sum_i P(r_i),  rank-k = mean_q [r_1 <= k],  mINP = mean_q R / r_R, where r_1 < ... < r_R are the
    ranks of the R relevant images after the camera filter and P(r_i) = i / r_i is the precision.

    Args:
        distance_QG: distances, smaller for more similar images; infinite values are allowed, NaN is not. Ties keep
            gallery order.
        query_pids: query identities, shape (Q,).
        gallery_pids: gallery identities, shape (G,). Distractors (images whose identity matches no query) are ranked
            like any other image.
        query_camids: query cameras, shape (Q,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: for each query, remove the gallery images with its identity and camera.
        ap: "step", or "trapezoid" as in the original Market-1501 code, which is up to a percentage point lower.
        block_size: number of queries per block; does not affect the result. None derives it from the gallery size.
        num_threads: number of blocks processed concurrently; does not affect the result.

    Returns:
        Dictionary with mAP (named `mAP_trapezoid` for the trapezoid form), rank1, rank5, rank10 and mINP as fractions
        of 1, averaged over the queries that have a match left after the camera filter. num_valid is the number of these
        queries, and num_skipped the number of the others.

    Raises:
        UserError: sizes are inconsistent, a distance is NaN, or no query has a match left after the camera filter.

    Source: Zheng et al., "Scalable Person Re-identification", ICCV 2015 (protocol, CMC and mAP); Ye et al.,
        "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021 (mINP).
    """
    distance_QG = np.asarray(distance_QG)
    _check_sizes(distance_QG.shape, query_pids, gallery_pids, query_camids, gallery_camids)
    return evaluate_blocks(
        lambda start, stop: distance_QG[start:stop],
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        camera_filter=camera_filter,
        ap=ap,
        block_size=block_size,
        num_threads=num_threads,
    )


def evaluate_blocks(
    distance_rows: Callable[[int, int], Array],
    query_pids: Integer[Array, " query_pids"],
    gallery_pids: Integer[Array, " gallery_pids"],
    query_camids: Integer[Array, " query_camids"],
    gallery_camids: Integer[Array, " gallery_camids"],
    *,
    camera_filter: bool = True,
    ap: str = "step",
    block_size: int | None = None,
    num_threads: int = 2,
) -> dict[str, float | int]:
    """Compute the metrics of `evaluate_ranking` from distances computed one block of queries at a time.

    Args:
        distance_rows: function from (start, stop) to the distances of queries start .. stop - 1, shape
            (stop - start, G). Called once per block, concurrently from `num_threads` threads.
        query_pids: query identities, shape (Q,).
        gallery_pids: gallery identities, shape (G,).
        query_camids: query cameras, shape (Q,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: as in `evaluate_ranking`.
        ap: as in `evaluate_ranking`.
        block_size: number of queries per block; None derives it from the gallery size.
        num_threads: number of blocks processed concurrently.

    Returns:
        Metrics, as in `evaluate_ranking`.

    Raises:
        UserError: as in `evaluate_ranking`.
    """
    labels = [np.asarray(array) for array in (query_pids, gallery_pids, query_camids, gallery_camids)]
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    num_query, num_gallery = len(query_pids), len(gallery_pids)
    _check_sizes((num_query, num_gallery), *labels)
    if not num_query or not num_gallery:
        raise UserError(
            f"evaluation: found {num_query} queries and {num_gallery} gallery images, expected at least one of each; "
            "check the splits"
        )
    if block_size is None:
        block_size = max(1, _BLOCK_ELEMENTS // num_gallery)
    if block_size < 1 or num_threads < 1:
        raise UserError(
            f"found block_size {block_size} and num_threads {num_threads}, expected both to be at least 1; raise them"
        )

    def block_statistics(start: int) -> QueryStatistics:
        stop = min(start + block_size, num_query)
        return ranking_statistics(
            distance_rows(start, stop),
            query_pids[start:stop],
            gallery_pids,
            query_camids[start:stop],
            gallery_camids,
            camera_filter=camera_filter,
            ap=ap,
            first_query=start,
        )

    with ThreadPoolExecutor(num_threads) as pool:
        starts = range(0, num_query, block_size)
        title = "ranking", len(starts), f"blocks of {block_size} queries"
        blocks = list(track(pool.map(block_statistics, starts), *title))
    statistics = QueryStatistics(*map(np.concatenate, zip(*blocks, strict=True)))
    if not statistics.valid.any():
        raise UserError(_explain_no_match(*labels))
    return summarise(statistics, ap=ap)


def ranking_statistics(
    distance_BG: Real[Array, "B G"],
    query_pids: Integer[Array, " query_pids"],
    gallery_pids: Integer[Array, " gallery_pids"],
    query_camids: Integer[Array, " query_camids"],
    gallery_camids: Integer[Array, " gallery_camids"],
    *,
    camera_filter: bool = True,
    ap: str = "step",
    first_query: int = 0,
) -> QueryStatistics:
    """Compute the per-query statistics of the metrics for a block of queries.

    To combine blocks, concatenate the results field by field.

    Args:
        distance_BG: distances from the block's queries to the gallery.
        query_pids: identities of the block's queries, shape (B,).
        gallery_pids: gallery identities, shape (G,).
        query_camids: cameras of the block's queries, shape (B,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: as in `evaluate_ranking`.
        ap: "step" or "trapezoid".
        first_query: index of the block's first query, for error messages.

    Returns:
        QueryStatistics with B entries in each field.

    Raises:
        UserError: sizes are inconsistent, a distance is NaN, or the form of AP is unknown.

    Source: compute_AP.m in the Market-1501 baseline code, for the trapezoid form.
    """
    distance_BG = np.asarray(distance_BG)
    labels = [np.asarray(array) for array in (query_pids, gallery_pids, query_camids, gallery_camids)]
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    _check_ap(ap)
    _check_sizes(distance_BG.shape, *labels)
    ranked = rank_block(distance_BG, *labels, camera_filter=camera_filter, first_query=first_query)
    return query_statistics(ranked.matches, ap)


def check_rankable(
    query_pids: Integer[Array, " query_pids"],
    gallery_pids: Integer[Array, " gallery_pids"],
    query_camids: Integer[Array, " query_camids"],
    gallery_camids: Integer[Array, " gallery_camids"],
    *,
    camera_filter: bool = True,
    where: str,
) -> None:
    """Raise UserError if no query has a match left in the gallery after the camera filter.

    Only labels are needed, so this can be checked before training.

    Args:
        query_pids: query identities, shape (Q,).
        gallery_pids: gallery identities, shape (G,).
        query_camids: query cameras, shape (Q,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: as in `evaluate_ranking`.
        where: name of the split, for the error message.
    """
    labels = [np.asarray(array) for array in (query_pids, gallery_pids, query_camids, gallery_camids)]
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    seen = np.unique(np.stack([gallery_pids, gallery_camids], axis=1), axis=0)
    identities, cameras = np.unique(seen[:, 0], return_counts=True)
    cameras_of = dict(zip(identities.tolist(), cameras.tolist(), strict=True))
    filtered = set(map(tuple, seen.tolist())) if camera_filter else set()
    for pid, camid in zip(query_pids.tolist(), query_camids.tolist(), strict=True):
        if cameras_of.get(pid, 0) > ((pid, camid) in filtered):
            return
    raise UserError(f"{where}: {_explain_no_match(*labels)}")


def summarise(statistics: QueryStatistics, *, ap: str = "step") -> dict[str, float | int]:
    """Average per-query statistics over the valid queries.

    Args:
        statistics: statistics of all queries.
        ap: form of AP used in `statistics`, which determines the key of the mean AP in the result.

    Returns:
        Metrics, as in `evaluate_ranking`.

    Raises:
        UserError: no query is valid, or the form of AP is unknown.
    """
    _check_ap(ap)
    valid = statistics.valid
    num_valid = int(valid.sum())
    if not num_valid:
        raise UserError(
            f"none of {len(valid)} queries has a match left in the gallery; usually all images have the same "
            "camera: provide the cameras, or switch the camera filter off with "
            f"{CAMERA_FILTER_OPTION}"
        )
    first_rank_V = statistics.first_rank[valid]
    return {
        MEAN_NAMES[ap]: float(statistics.ap[valid].mean()),
        **{f"rank{k}": float((first_rank_V <= k).mean()) for k in CMC_RANKS},
        "mINP": float(statistics.inp[valid].mean()),
        "num_valid": num_valid,
        "num_skipped": len(valid) - num_valid,
    }


def _check_ap(ap: str) -> None:
    if ap not in MEAN_NAMES:
        raise UserError(f"ap {ap!r} is not a form of average precision; expected one of {', '.join(MEAN_NAMES)}")


def _check_sizes(
    shape: tuple[int, ...], query_pids: Array, gallery_pids: Array, query_camids: Array, gallery_camids: Array
) -> None:
    """Raise UserError unless each label array has one entry per query or gallery image."""
    if len(shape) != 2:
        raise UserError(f"distances have shape {tuple(shape)}; expected two axes, (queries, gallery images)")
    for name, labels, axis, size in (
        ("query_pids", query_pids, "queries", shape[0]),
        ("query_camids", query_camids, "queries", shape[0]),
        ("gallery_pids", gallery_pids, "gallery images", shape[1]),
        ("gallery_camids", gallery_camids, "gallery images", shape[1]),
    ):
        if np.shape(labels) != (size,):
            raise UserError(
                f"{name} has shape {np.shape(labels)}, the distances have shape {tuple(shape)}: expected one "
                f"label for each of {size} {axis}"
            )


def _explain_no_match(query_pids: Array, gallery_pids: Array, query_camids: Array, gallery_camids: Array) -> str:
    """Return a one-line explanation of why no query has a match left in the gallery, with the remedy."""
    problem = f"none of {len(query_pids)} queries has a match left among {len(gallery_pids)} gallery images"
    if not np.isin(query_pids, gallery_pids).any():
        return f"{problem}: query and gallery have no identity in common; check the pids of both"
    cameras = np.union1d(query_camids, gallery_camids)
    cause = (
        f"all images have the same camera ({cameras[0]})"
        if cameras.size == 1
        else "each match was taken by its query's own camera"
    )
    return (
        f"{problem}: {cause}, and the camera filter removes matches of the query's camera; provide the cameras, "
        f"or switch the filter off with {CAMERA_FILTER_OPTION}"
    )
