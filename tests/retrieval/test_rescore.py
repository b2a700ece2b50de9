"""Choosing, re-scoring and re-ordering the best candidates, against literal loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.retrieval.rescore import Rescorer, nearest, reorder


def distances(queries=5, gallery=9, ties=False, dtype=np.float32):
    found = np.random.default_rng(0).uniform(0, 2, (queries, gallery)).astype(dtype)
    return np.round(2 * found) / 2 if ties else found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 4, 8, 9, 20])
def test_nearest_equals_a_stable_sort(count, ties, dtype):
    distance_QG = distances(ties=ties, dtype=dtype)
    expected = [sorted(range(9), key=lambda g, row=row: (row[g], g))[:count] for row in distance_QG]
    np.testing.assert_array_equal(nearest(distance_QG, count), expected)


def test_nearest_with_one_distance_for_all_takes_gallery_order():
    np.testing.assert_array_equal(nearest(np.ones((2, 9), np.float32), 3), [[0, 1, 2]] * 2)


@pytest.mark.parametrize("score_ties", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_reorder_ranks_candidates_by_score_and_leaves_the_rest(count, ties, score_ties):
    distance_QG = distances(ties=ties)
    candidates_QK = nearest(distance_QG, count)
    score_QK = np.random.default_rng(1).uniform(-3, 3, (5, count)).astype(np.float32)
    if score_ties:
        score_QK = np.sign(score_QK)
    before = distance_QG.copy()
    found = np.argsort(reorder(distance_QG, candidates_QK, score_QK), axis=1, kind="stable")
    for q in range(5):
        by_score = sorted(range(count), key=lambda k, q=q: (score_QK[q, k], k))  # equal: the individual order
        rest = [g for g in np.argsort(distance_QG[q], kind="stable") if g not in candidates_QK[q]]
        assert list(found[q]) == [candidates_QK[q, k] for k in by_score] + rest
    np.testing.assert_array_equal(distance_QG, before)


def test_no_rescored_image_falls_behind_even_at_the_smallest_individual_distance():
    """The closest image of all was not re-scored: the order still puts every candidate first."""
    distance_QG = np.array([[-1e-6, 0.5, 0.9, 2.0]], np.float32)
    found = reorder(distance_QG, np.array([[2, 3]]), np.array([[9.0, 8.0]], np.float32))
    assert list(np.argsort(found[0])) == [3, 2, 0, 1]


@pytest.mark.parametrize("pairs_per_call", [1, 3, 7, 8, 1000])
def test_rescorer_equals_the_loop_whatever_a_call_holds(pairs_per_call):
    rng = np.random.default_rng(2)
    query, gallery = ({"x": rng.standard_normal((n, 3)).astype(np.float32), "none": None} for n in (5, 9))
    candidates_QK = np.stack([rng.permutation(9)[:4] for _ in range(5)])

    def pair_distance(u, v):  # not symmetric in u and v
        return jnp.sum(jnp.abs(u["x"] - 2 * v["x"]))

    found = Rescorer(pair_distance, pairs_per_call)(query, gallery, candidates_QK)
    expected = [
        [np.abs(query["x"][q] - 2 * gallery["x"][g]).sum() for g in candidates]
        for q, candidates in enumerate(candidates_QK)
    ]
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
