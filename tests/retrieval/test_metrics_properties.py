"""Properties of the ranking metrics, for any small retrieval problem: most of its distances are tied."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cacenet_jax.retrieval import match_ranks
from cacenet_jax.retrieval.match_ranks import nearest_indices, rank_block
from cacenet_jax.retrieval.metrics import evaluate_ranking


@st.composite
def problems(draw, distinct=False):
    """Distances of few values (or all different in a row), labels, cameras; the first query has a match left."""
    num_query, num_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    if distinct:
        rows = [draw(st.permutations(range(num_gallery))) for _ in range(num_query)]
        distance_QG = np.array(rows, np.float64)
    else:
        distance_QG = draw(hnp.arrays(np.float64, (num_query, num_gallery), elements=st.integers(-2, 3)))
    labels = lambda size, count: draw(hnp.arrays(np.int64, size, elements=st.integers(0, count - 1)))
    query_pids, gallery_pids = labels(num_query, 3), labels(num_gallery, 4)
    query_camids, gallery_camids = labels(num_query, 3), labels(num_gallery, 3)
    gallery_pids[0], gallery_camids[0] = query_pids[0], (query_camids[0] + 1) % 3
    return distance_QG, query_pids, gallery_pids, query_camids, gallery_camids


def same(one, other):
    """Means may be added up in another order."""
    return one == pytest.approx(other, abs=1e-12)


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_the_queries_changes_nothing(problem, random):
    distance_QG, query_pids, gallery_pids, query_camids, gallery_camids = problem
    order = random.sample(range(len(query_pids)), len(query_pids))
    permuted = distance_QG[order], query_pids[order], gallery_pids, query_camids[order], gallery_camids
    assert same(evaluate_ranking(*permuted), evaluate_ranking(*problem))


@given(problems(distinct=True), st.randoms(use_true_random=False))
def test_order_of_the_gallery_changes_nothing_without_ties(problem, random):
    distance_QG, query_pids, gallery_pids, query_camids, gallery_camids = problem
    order = random.sample(range(len(gallery_pids)), len(gallery_pids))
    permuted = distance_QG[:, order], query_pids, gallery_pids[order], query_camids, gallery_camids[order]
    assert evaluate_ranking(*permuted) == evaluate_ranking(*problem)


@given(problems())
def test_ties_keep_gallery_order(problem):
    """The same result where each tie is broken by the place in the gallery."""
    distance_QG, *labels = problem
    place_QG = np.argsort(np.argsort(distance_QG, axis=1, kind="stable"), axis=1)
    assert evaluate_ranking(place_QG.astype(np.float64), *labels) == evaluate_ranking(*problem)


@given(problems(), st.sampled_from([lambda d: 3 * d + 1, lambda d: d**3, np.exp, lambda d: d - 1e6, np.float32]))
def test_only_the_order_of_the_distances_matters(problem, rescale):
    distance_QG, *labels = problem
    assert evaluate_ranking(rescale(distance_QG), *labels) == evaluate_ranking(*problem)


@given(problems(), st.booleans(), st.sampled_from(["step", "trapezoid"]))
def test_scores_are_fractions_and_cmc_rises(problem, camera_filter, ap):
    scores = evaluate_ranking(*problem, camera_filter=camera_filter, ap=ap)
    valid, skipped = scores.pop("num_valid"), scores.pop("num_skipped")
    assert valid >= 1 and valid + skipped == len(problem[1])
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["rank1"] <= scores["rank5"] <= scores["rank10"]
    assert scores["mINP"] > 0


@given(problems())
def test_camera_filter_equals_a_gallery_without_those_images(problem):
    distance_QG, query_pids, gallery_pids, query_camids, gallery_camids = (x[:1] if x.ndim == 2 else x for x in problem)
    query = query_pids[:1], query_camids[:1]
    left = (gallery_pids != query[0]) | (gallery_camids != query[1])
    assert evaluate_ranking(distance_QG, query[0], gallery_pids, query[1], gallery_camids) == evaluate_ranking(
        distance_QG[:, left], query[0], gallery_pids[left], query[1], gallery_camids[left], camera_filter=False
    )


@given(problems(), st.integers(-3, 4), st.integers(0, 12))
def test_an_image_of_the_same_camera_is_never_looked_at(problem, distance, place):
    """Wherever it ranks, for a single query; the images of another identity that follow all others likewise."""
    distance_QG, query_pids, gallery_pids, query_camids, gallery_camids = problem
    one = distance_QG[:1], query_pids[:1], gallery_pids, query_camids[:1], gallery_camids
    place = min(place, len(gallery_pids))
    add = lambda at, value, pid, camid: (
        np.insert(one[0], at, value, axis=1), one[1], np.insert(one[2], at, pid), one[3], np.insert(one[4], at, camid)
    )  # fmt: skip
    assert evaluate_ranking(*add(place, distance, query_pids[0], query_camids[0])) == evaluate_ranking(*one)
    behind = add(len(gallery_pids), 9, 99, query_camids[0])
    assert evaluate_ranking(*behind) == evaluate_ranking(*one)


@given(problems(), st.integers(1, 6), st.integers(1, 3))
def test_blocks_and_threads_change_nothing(problem, block_size, num_threads):
    blocked = evaluate_ranking(*problem, block_size=block_size, num_threads=num_threads)
    assert blocked == evaluate_ranking(*problem)


def long_rows(dtype):
    """Rows of up to 300 distances, from a single value to hardly any tie; zeros of both signs and infinities too."""
    few = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, np.inf])
    many = st.floats(-2, 2, width=32)
    return hnp.arrays(dtype, st.integers(1, 300), elements=few) | hnp.arrays(dtype, st.integers(1, 300), elements=many)


@given(st.sampled_from([np.float32, np.float64]).flatmap(long_rows), st.data())
def test_nearest_indices_begin_the_stable_sort(distance_G, data):
    """Short lists of long rows take the bound from a part of the row."""
    count = data.draw(st.integers(1, len(distance_G)) | st.integers(1, min(5, len(distance_G))))
    expected = np.argsort(distance_G, kind="stable")[:count]
    np.testing.assert_array_equal(nearest_indices(distance_G, count), expected)


@given(st.sampled_from([np.float32, np.float64]).flatmap(long_rows), st.integers(1, 4), st.sampled_from([0, 10, 10**9]))
def test_counted_and_sorted_positions_are_those_of_the_stable_sort(distance_G, identities, counted_gallery):
    gallery_pids = np.arange(len(distance_G)) * 7 % identities
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_ranks, "_COUNTED_GALLERY", counted_gallery)
        zeros = np.zeros_like(gallery_pids)
        ranked = rank_block(distance_G[None], zeros[:1], gallery_pids, zeros[:1], zeros, top_k=min(3, len(distance_G)))
    order = np.argsort(distance_G, kind="stable")
    np.testing.assert_array_equal(np.sort(ranked.matches[0].position_S), np.flatnonzero(gallery_pids[order] == 0))
    np.testing.assert_array_equal(order[ranked.matches[0].position_S], np.flatnonzero(gallery_pids == 0))
    np.testing.assert_array_equal(ranked.candidates_BK[0], order[:3])
    np.testing.assert_array_equal(ranked.distance_BK[0], distance_G[order[:3]])
