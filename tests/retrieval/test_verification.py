"""Verification metrics against a loop over all pairs and all thresholds."""

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval import verification as module
from cacenet_jax.retrieval.verification import verification


def problem(seed, num_query=9, num_gallery=40, levels=0):
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, high, n) for high in (5, 3) for n in (num_query, num_gallery)]
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    distance = rng.random((num_query, num_gallery)) - 0.3 * (query_pids[:, None] == gallery_pids)
    if levels:
        distance = np.round(distance * levels) / levels
    return distance.astype(np.float32), (query_pids, gallery_pids, query_camids, gallery_camids)


def literal(distance, labels, camera_filter, rates):
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    positive, negative = [], []
    for q, row in enumerate(distance):
        for g, d in enumerate(row):
            if query_pids[q] != gallery_pids[g]:
                negative.append(d)
            elif not (camera_filter and query_camids[q] == gallery_camids[g]):
                positive.append(d)
    wins = sum((p < n) + (p == n) / 2 for p in positive for n in negative)
    result = {"roc_auc": wins / (len(positive) * len(negative))}
    for rate in rates:
        best = 0.0
        for threshold in (*sorted({*positive, *negative}), np.inf):
            if sum(n < threshold for n in negative) <= rate * len(negative):
                best = max(best, sum(p < threshold for p in positive) / len(positive))
        result[f"tpr_at_fpr_{rate:g}"] = best
    return result


@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize(("seed", "levels"), [(0, 0), (1, 0), (2, 10), (3, 2)])
@pytest.mark.parametrize("elements", [2**22, 40, 100])
def test_equals_the_loop(monkeypatch, seed, levels, camera_filter, elements):
    """With ties, and in blocks of any size."""
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
    distance, labels = problem(seed, levels=levels)
    rates = (0.0, 0.01, 0.1, 0.5, 1.0)
    result = verification(lambda a, b: distance[a:b], *labels, camera_filter=camera_filter, rates=rates)
    assert result == pytest.approx(literal(distance, labels, camera_filter, rates), rel=1e-12)


def test_perfect_and_useless_distances():
    _, labels = problem(0)
    right = (labels[0][:, None] != labels[1]).astype(np.float32)
    perfect = verification(lambda a, b: right[a:b], *labels)
    assert perfect == {"roc_auc": 1.0, "tpr_at_fpr_0.0001": 1.0, "tpr_at_fpr_0.001": 1.0, "tpr_at_fpr_0.01": 1.0}
    useless = verification(lambda a, b: np.zeros_like(right[a:b]), *labels)
    assert useless == {"roc_auc": 0.5, "tpr_at_fpr_0.0001": 0.0, "tpr_at_fpr_0.001": 0.0, "tpr_at_fpr_0.01": 0.0}


def test_pairs_of_one_kind_alone_are_refused():
    distance, labels = problem(0)
    one = tuple(np.zeros_like(x) for x in labels[:2])
    with pytest.raises(UserError, match=r"verification: found \d+ positive and 0 negative pairs"):
        verification(lambda a, b: distance[a:b], *one, *labels[2:], camera_filter=False)
    with pytest.raises(UserError, match=r"verification: found 0 positive and \d+ negative pairs"):
        verification(lambda a, b: distance[a:b], labels[0], labels[1] + 9, *labels[2:])
