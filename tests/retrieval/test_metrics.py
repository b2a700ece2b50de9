import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval import match_ranks
from cacenet_jax.retrieval.metrics import (
    QueryStatistics,
    evaluate_blocks,
    evaluate_ranking,
    ranking_statistics,
    summarise,
)

OPTION = "--config.eval.camera_filter=False"


def one_query(positions, size=5):
    """One query whose relevant images are at `positions` of a gallery that is in order already."""
    gallery_pids = np.full(size, 9)
    gallery_pids[list(positions)] = 1
    distance_1G = np.arange(size, dtype=np.float64)[None]
    return distance_1G, np.array([1]), gallery_pids, np.array([0]), np.ones(size, np.int64)


def literal(distances, query_pids, gallery_pids, query_camids, gallery_camids, camera_filter=True, ap="step"):
    """Definition in plain Python, image by image: (AP, first rank, INP) of each query, or None if skipped."""
    out = []
    distances = np.asarray(distances, np.float64)
    for distance_G, pid, camid in zip(distances, query_pids, query_camids, strict=True):
        order = sorted(range(len(distance_G)), key=lambda g, d=distance_G: (d[g], g))
        removed = (gallery_pids == pid) & (gallery_camids == camid) & camera_filter
        kept = [g for g in order if not removed[g]]
        match = [gallery_pids[g] == pid for g in kept]
        total = sum(match)
        if not total:
            out.append(None)
            continue
        # compute_AP.m, line by line; the step form omits the precision before the match.
        score, retrieved, old_recall, old_precision = 0.0, 0, 0.0, 1.0
        for rank, hit in enumerate(match, start=1):
            retrieved += hit
            recall, precision = retrieved / total, retrieved / rank
            score += (recall - old_recall) * (precision if ap == "step" else (old_precision + precision) / 2)
            old_recall, old_precision = recall, precision
        ranks = [rank for rank, hit in enumerate(match, start=1) if hit]
        out.append((score, ranks[0], total / ranks[-1]))
    return out


def random_problem(seed, levels, num_query=12, num_gallery=40, dtype=np.float32):
    """Distances with few distinct values, among them -0.0 and infinity, so that most are tied."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[-0.0, 0.0, np.inf, -np.inf], rng.standard_normal(levels)]).astype(dtype)
    return (
        values[rng.integers(0, len(values), (num_query, num_gallery))],
        rng.integers(0, 6, num_query),
        rng.integers(0, 6, num_gallery),
        rng.integers(0, 3, num_query),
        rng.integers(0, 3, num_gallery),
    )


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ((0, 1, 3), 11 / 12),
        ((0, 3, 4), 21 / 30),
        ((1, 2, 4), 53 / 90),
        ((2, 3, 4), 43 / 90),
        ((0,), 1.0),
        ((3,), 1 / 4),
    ],
)
def test_step_average_precision_by_hand(positions, expected):
    metrics = evaluate_ranking(*one_query(positions))
    assert metrics["mAP"] == pytest.approx(expected, abs=1e-15)
    assert metrics["mINP"] == pytest.approx(len(positions) / (positions[-1] + 1), abs=1e-15)
    assert metrics["rank1"] == float(positions[0] == 0)
    assert metrics["rank5"] == metrics["rank10"] == 1.0  # a gallery of 5 has a rank 10 too


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        # Mean of (precision before + precision at) / 2: (1 + 1, 1 + 1, 2/3 + 3/4) / 6.
        ((0, 1, 3), 65 / 72),
        # (0 + 1/3, 1/3 + 2/4, 2/4 + 3/5) / 6
        ((2, 3, 4), 34 / 90),
        ((0,), 1.0),
        ((3,), 1 / 8),
    ],
)
def test_trapezoid_has_its_own_value_and_name(positions, expected):
    metrics = evaluate_ranking(*one_query(positions), ap="trapezoid")
    assert metrics["mAP_trapezoid"] == pytest.approx(expected, abs=1e-15)
    assert "mAP" not in metrics


def test_results_are_plain_numbers():
    metrics = evaluate_ranking(*one_query((1,)))
    assert {name: type(value) for name, value in metrics.items()} == {
        **dict.fromkeys(("mAP", "rank1", "rank5", "rank10", "mINP"), float),
        **dict.fromkeys(("num_valid", "num_skipped"), int),
    }


def test_only_same_identity_in_same_camera_is_removed():
    distance_QG = np.array([[0.0, 1.0, 2.0, 3.0]])
    gallery_pids, gallery_camids = np.array([1, 2, 1, 1]), np.array([0, 0, 5, 0])
    labels = (np.array([1]), gallery_pids, np.array([0]), gallery_camids)
    # Left: the other identity of camera 0, then the match of camera 5.
    assert evaluate_ranking(distance_QG, *labels)["mAP"] == pytest.approx(1 / 2)
    # Without the filter: matches at 0, 2, 3.
    expected = (1 + 2 / 3 + 3 / 4) / 3
    assert evaluate_ranking(distance_QG, *labels, camera_filter=False)["mAP"] == pytest.approx(expected)


def test_distractors_push_matches_back():
    distance_QG = np.array([[1.0, 2.0, 3.0]])
    labels = (np.array([4]), np.array([0, 0, 4]), np.array([1]), np.array([1, 2, 3]))
    assert evaluate_ranking(distance_QG, *labels)["mAP"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [3, 400])
def test_equal_distances_keep_gallery_order(size):
    # 400 exceeds the ties that are counted one by one. Every second image matches; all are at one distance.
    gallery_pids = np.arange(size) % 2
    labels = (np.array([1]), gallery_pids, np.array([0]), np.ones(size, np.int64))
    metrics = evaluate_ranking(np.full((1, size), 0.25, np.float32), *labels)
    retrieved = np.arange(1, size // 2 + 1)
    assert metrics["mAP"] == pytest.approx(np.mean(retrieved / (2 * retrieved)))
    assert (metrics["rank1"], metrics["rank5"]) == (0.0, 1.0)
    negative_zero = np.where(gallery_pids == 1, -0.0, 0.0).astype(np.float32)[None]
    assert evaluate_ranking(negative_zero, *labels) == metrics


def test_skipped_query_leaves_the_denominator():
    distance_1G, pids, gallery_pids, camids, gallery_camids = one_query((1,))
    alone = evaluate_ranking(distance_1G, pids, gallery_pids, camids, gallery_camids)
    distance_3G = np.repeat(distance_1G, 3, axis=0)
    # The second query has no match, the third one only in its own camera.
    metrics = evaluate_ranking(distance_3G, np.array([1, 7, 1]), gallery_pids, np.array([0, 0, 1]), gallery_camids)
    assert (metrics["num_valid"], metrics["num_skipped"]) == (1, 2)
    assert {**metrics, "num_skipped": 0} == alone


def test_statistics_mark_skipped_queries():
    distance_1G, _, gallery_pids, _, gallery_camids = one_query((1,))
    rows = ranking_statistics(
        np.repeat(distance_1G, 2, axis=0),
        np.array([1, 7]),
        gallery_pids,
        np.zeros(2, np.int64),
        gallery_camids,
    )
    assert rows.valid.tolist() == [True, False]
    assert rows.first_rank.tolist() == [2, 0]
    assert rows.ap[0] == rows.inp[0] == 0.5
    assert np.isnan([rows.ap[1], rows.inp[1]]).all()


def test_no_valid_query_says_why_in_one_line():
    distance_1G, pids, gallery_pids, camids, _ = one_query((1,))
    with pytest.raises(UserError, match="all images have the same camera") as one_camera:
        evaluate_ranking(distance_1G, pids, gallery_pids, camids, np.zeros(5, np.int64))
    with pytest.raises(UserError, match="its query's own camera") as own_camera:
        evaluate_ranking(distance_1G, pids, gallery_pids, camids, np.array([3, 0, 3, 3, 3]))
    with pytest.raises(UserError, match="have no identity in common") as no_identity:
        evaluate_ranking(distance_1G, np.array([77]), gallery_pids, camids, np.ones(5, np.int64))
    for error in (one_camera, own_camera):
        assert OPTION in str(error.value)
    assert OPTION not in str(no_identity.value)  # the option would not help
    assert "\n" not in "".join(str(error.value) for error in (one_camera, own_camera, no_identity))
    assert evaluate_ranking(distance_1G, pids, gallery_pids, camids, np.zeros(5, np.int64), camera_filter=False)[
        "mAP"
    ] == pytest.approx(1 / 2)


def test_summarise_without_valid_queries():
    nothing = QueryStatistics(np.full(2, np.nan), np.zeros(2, int), np.full(2, np.nan), np.zeros(2, bool))
    with pytest.raises(UserError, match="none of 2 queries"):
        summarise(nothing)


def test_nan_names_the_query():
    distance_QG, *labels = random_problem(0, 5)
    distance_QG[7, 3] = np.nan
    with pytest.raises(UserError, match="query 7 hold NaN"):
        evaluate_ranking(distance_QG, *labels, block_size=3)


@pytest.mark.parametrize("which", range(4))
def test_inconsistent_sizes_name_both_sides(which):
    distance_QG, *labels = random_problem(0, 5)
    size = len(labels[which])
    labels[which] = labels[which][:-1]
    names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
    with pytest.raises(UserError, match=rf"{names[which]} .*\({size - 1},\).*\(12, 40\)"):
        evaluate_ranking(distance_QG, *labels)


def test_impossible_options():
    problem = one_query((1,))
    with pytest.raises(UserError, match=r"ap 'area'.*step, trapezoid"):
        evaluate_ranking(*problem, ap="area")
    with pytest.raises(UserError, match="found block_size 0"):
        evaluate_ranking(*problem, block_size=0)
    empty = np.zeros(0, np.int64)
    with pytest.raises(UserError, match="1 queries and 0 gallery"):
        evaluate_ranking(np.zeros((1, 0)), np.array([1]), empty, np.array([0]), empty)


@pytest.mark.parametrize("ap", ["step", "trapezoid"])
@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_definition(seed, camera_filter, ap):
    # From hardly any distinct values to hardly any ties.
    problem = random_problem(seed, levels=(1, 4, 1000)[seed % 3], dtype=(np.float32, np.float64)[seed % 2])
    rows = ranking_statistics(*problem, camera_filter=camera_filter, ap=ap)
    expected = literal(*problem, camera_filter, ap)
    assert rows.valid.tolist() == [row is not None for row in expected]
    ap_V, first_V, inp_V = np.array([row for row in expected if row is not None]).T
    np.testing.assert_allclose(rows.ap[rows.valid], ap_V, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(rows.first_rank[rows.valid], first_V)
    np.testing.assert_allclose(rows.inp[rows.valid], inp_V, rtol=0, atol=1e-15)
    metrics = evaluate_ranking(*problem, camera_filter=camera_filter, ap=ap)
    assert metrics["mAP" if ap == "step" else "mAP_trapezoid"] == pytest.approx(ap_V.mean(), abs=1e-14)
    assert metrics["mINP"] == pytest.approx(inp_V.mean(), abs=1e-14)
    for k in (1, 5, 10):
        assert metrics[f"rank{k}"] == pytest.approx((first_V <= k).mean(), abs=1e-15)


@pytest.mark.parametrize(
    ("counted_gallery", "counted_ties"), [(0, 0), (10**9, 0), (10**9, 10**9)], ids=["counted", "sorted", "ties counted"]
)
def test_all_algorithms_agree_with_the_definition(counted_gallery, counted_ties, monkeypatch):
    monkeypatch.setattr(match_ranks, "_COUNTED_GALLERY", counted_gallery)
    monkeypatch.setattr(match_ranks, "_MAX_COUNTED_TIES", counted_ties)
    problem = random_problem(11, levels=3)
    expected = [row[0] for row in literal(*problem) if row is not None]
    assert evaluate_ranking(*problem)["mAP"] == pytest.approx(np.mean(expected), abs=1e-14)


def test_float64_differences_below_float32_count():
    distance_1G, *labels = one_query((1,), size=2)
    distance_1G[:] = [1.0 + 1e-12, 1.0]
    assert evaluate_ranking(distance_1G, *labels)["mAP"] == 1.0


def test_blocks_and_threads_give_bit_identical_results():
    distance_QG, *labels = random_problem(3, levels=6, num_query=23, num_gallery=57)
    expected = evaluate_ranking(distance_QG, *labels, block_size=23, num_threads=1)
    for block_size, num_threads in ((1, 1), (5, 2), (7, 3), (100, 2), (None, 2)):
        options = {"block_size": block_size, "num_threads": num_threads}
        assert evaluate_ranking(distance_QG, *labels, **options) == expected
        called = []

        def rows(start, stop, called=called):
            called.append((start, stop))
            return jnp.asarray(distance_QG[start:stop])

        assert evaluate_blocks(rows, *labels, **options) == expected
        assert sorted(q for start, stop in called for q in range(start, stop)) == list(range(23))


def test_invariant_to_the_order_of_images_and_monotone_maps():
    rng = np.random.default_rng(5)
    _, *labels = random_problem(5, 1)
    distance_QG = rng.permutation(12 * 40).reshape(12, 40) / 7.0  # no ties
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    expected = evaluate_ranking(distance_QG, *labels)
    assert 0 < expected["mAP"] < 1
    q, g = rng.permutation(12), rng.permutation(40)
    moved = (distance_QG[q][:, g], query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g])
    assert evaluate_ranking(*moved) == pytest.approx(expected, abs=1e-14)
    assert evaluate_ranking(np.exp(-1 / (distance_QG + 1)), *labels) == expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_jax_arrays_of_any_real_type(dtype):
    rng = np.random.default_rng(2)
    distance_QG = rng.integers(0, 16, (12, 40))  # integers that every dtype represents
    _, *labels = random_problem(2, 1)
    retrieved = evaluate_ranking(jnp.asarray(distance_QG, dtype), *map(jnp.asarray, labels))
    assert retrieved == evaluate_ranking(distance_QG.astype(np.float64), *labels)
