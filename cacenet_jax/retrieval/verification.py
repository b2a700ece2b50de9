"""Verification metrics: how well one threshold on the distance separates pairs of one person from other pairs.

Axes: Q queries, G gallery images, B queries in a block.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Integer, Real

from cacenet_jax.errors import UserError

Array = np.ndarray | jax.Array

FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)
_BLOCK_ELEMENTS = 2**22  # distances in a block
_TASK_ROWS = 8  # rows that a thread compares at a time


def verification(
    distance_rows: Callable[[int, int], Real[np.ndarray, "B G"]],
    query_pids: Integer[Array, " query_pids"],
    gallery_pids: Integer[Array, " gallery_pids"],
    query_camids: Integer[Array, " query_camids"],
    gallery_camids: Integer[Array, " gallery_camids"],
    *,
    camera_filter: bool = True,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> dict[str, float]:
    """Compute the area under the ROC curve, and true positive rates at fixed false positive rates.

    A pair of a query and a gallery image is positive if both show one identity. It is accepted if its distance is below
    a threshold, which is the same for all queries. TPR at FPR x is the share of accepted positive pairs at the largest
    threshold that accepts at most the share x of the negative pairs.

    Args:
        distance_rows: function from (start, stop) to the distances of queries start .. stop - 1, shape
            (stop - start, G). Called twice for each block.
        query_pids: query identities, shape (Q,).
        gallery_pids: gallery identities, shape (G,).
        query_camids: query cameras, shape (Q,).
        gallery_camids: gallery cameras, shape (G,).
        camera_filter: leave out pairs with the same identity and camera.
        rates: false positive rates x.

    Returns:
        "roc_auc", the probability that a positive pair has a smaller distance than a negative one, with ties counted as
        one half, and "tpr_at_fpr_X" for each rate, as fractions of 1.

    Raises:
        UserError: there are no positive or no negative pairs.
    """
    pids, camids = (
        (np.asarray(query_pids), np.asarray(gallery_pids)),
        (np.asarray(query_camids), np.asarray(gallery_camids)),
    )
    num_query, num_gallery = len(pids[0]), len(pids[1])
    size = max(1, _BLOCK_ELEMENTS // max(num_gallery, 1))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, num_query, size):
            rows = slice(start, min(start + size, num_query))
            same_BG = pids[0][rows, None] == pids[1]
            removed_BG = same_BG & (camids[0][rows, None] == camids[1]) & camera_filter
            yield np.asarray(distance_rows(rows.start, rows.stop)), same_BG & ~removed_BG, ~same_BG

    positive = np.sort(np.concatenate([distance_BG[same_BG] for distance_BG, same_BG, _ in blocks()] or [np.empty(0)]))
    num_negative = sum(_negatives(*pids))
    if not positive.size or not num_negative:
        raise UserError(
            f"verification: found {positive.size} positive and {num_negative} negative pairs, expected at least one of "
            "each; check the labels"
        )
    keep = int(max(rates) * num_negative) + 1
    smallest = np.empty(0, positive.dtype)
    below = tied = (
        0  # pairs of a positive and a negative with the smaller distance at the positive, and with equal ones
    )

    def compare(negative: np.ndarray) -> tuple[int, int]:
        first = np.searchsorted(positive, negative, side="left")
        last = np.searchsorted(positive, negative, side="right")
        return int(first.sum()), int((last - first).sum())

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for distance_BG, _, other_BG in blocks():
            parts = [
                distance_BG[i : i + _TASK_ROWS][other_BG[i : i + _TASK_ROWS]]
                for i in range(0, len(distance_BG), _TASK_ROWS)
            ]
            for before, equal in pool.map(compare, parts):
                below, tied = below + before, tied + equal
            smallest = np.concatenate([smallest, *parts])
            if len(smallest) > keep:
                smallest = np.partition(smallest, keep - 1)[:keep]
    smallest.sort()
    result = {"roc_auc": (below + tied / 2) / (positive.size * num_negative)}
    for rate in rates:
        accepted = int(rate * num_negative)  # negative pairs that may be accepted
        threshold = smallest[accepted] if accepted < num_negative else np.inf
        result[f"tpr_at_fpr_{rate:g}"] = float(np.searchsorted(positive, threshold, side="left") / positive.size)
    return result


def line(result: Mapping[str, float]) -> str:
    """Format the output of `verification`, and mAP_trapezoid if it is there, as one line, in per cent."""
    rates = [
        f"{100 * value:.2f} at FPR {name.removeprefix('tpr_at_fpr_')}"
        for name, value in result.items()
        if "fpr" in name
    ]
    trapezoid = f"; mAP of the trapezoid form {100 * result['mAP_trapezoid']:.2f}" if "mAP_trapezoid" in result else ""
    return f"area under the ROC curve {100 * result['roc_auc']:.2f}; TPR {', '.join(rates)}{trapezoid}"


def _negatives(query_pids: np.ndarray, gallery_pids: np.ndarray) -> Iterator[int]:
    """Yield the number of gallery images of other identities for each query."""
    names, counts = np.unique(gallery_pids, return_counts=True)
    count_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
    for pid in query_pids.tolist():
        yield len(gallery_pids) - count_of.get(pid, 0)
