"""Rankings and metrics of small random features, against a literal loop over queries and ranks."""

import logging
import tracemalloc

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval import distances, rankings
from cacenet_jax.retrieval.distances import cosine_distance
from cacenet_jax.retrieval.rankings import (
    METRICS,
    LabelledSet,
    Settings,
    evaluate,
    ranked_lists,
)
from cacenet_jax.retrieval.results_table import table


def images(count, seed):
    """Unit embeddings, few identities and cameras, one distractor identity."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((count, 4)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return LabelledSet(embedding, rng.integers(0, 4, count), rng.integers(0, 3, count))


QUERY, GALLERY = images(7, 0), images(20, 1)
PAIR = np.random.default_rng(7).uniform(0, 2, (7, 20)).astype(np.float32)  # unrelated to the embeddings


def rescore(candidates):
    return np.take_along_axis(PAIR, candidates, axis=1)


def order_by_hand(q, weight, top_k, camera_filter):
    """One query's gallery images, best first; weight None is the individual ranking."""
    cosine = [float(1 - QUERY.embedding[q] @ g) for g in GALLERY.embedding]
    order = sorted(range(len(cosine)), key=lambda g: (cosine[g], g))
    if weight is not None:
        scored = sorted(order[:top_k], key=lambda g: weight * PAIR[q, g] + (1 - weight) * cosine[g])
        order = scored + order[top_k:]
    return [g for g in order if not (camera_filter and is_junk(q, g))]  # after the candidates are taken


def metrics_by_hand(weight, top_k, camera_filter):
    """Metrics by a loop over queries."""
    ap, first, inp = [], [], []
    for q in range(len(QUERY.pids)):
        order = order_by_hand(q, weight, top_k, camera_filter)
        hits = [rank for rank, g in enumerate(order, 1) if GALLERY.pids[g] == QUERY.pids[q]]
        if hits:
            ap.append(np.mean([i / rank for i, rank in enumerate(hits, 1)]))
            first.append(hits[0])
            inp.append(len(hits) / hits[-1])
    ranks = {f"rank{k}": np.mean(np.array(first) <= k) for k in (1, 5, 10)}
    return {"mAP": np.mean(ap), **ranks, "mINP": np.mean(inp)}, len(ap)


def is_junk(q, g):
    return GALLERY.pids[g] == QUERY.pids[q] and GALLERY.camids[g] == QUERY.camids[q]


@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize(("top_k", "query_block"), [(1, 0), (6, 3), (20, 1)])
def test_all_three_rankings_equal_the_loop(top_k, query_block, camera_filter):
    settings = Settings(top_k, camera_filter, 0.3, query_block)
    result = evaluate(QUERY, GALLERY, rescore, settings, mixes=(0.0, 0.3, 1.0))
    for name, weight in {"individual": None, "conditional": 1.0, "mixed": 0.3}.items():
        expected, valid = metrics_by_hand(weight, top_k, camera_filter)
        assert result["num_valid"] == valid
        assert set(result[name]) == set(METRICS)
        for metric in METRICS:
            np.testing.assert_allclose(result[name][metric], expected[metric], rtol=1e-12, err_msg=f"{name} {metric}")
    assert (result["top_k"], result["num_query"], result["num_gallery"]) == (top_k, 7, 20)
    expected = [result[name]["mAP"] for name in ("individual", "mixed", "conditional")]
    assert list(result["mAP_by_mix"].values()) == expected


@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize(("top_k", "length"), [(3, 8), (12, 2), (20, 25)])
def test_ranked_lists_equal_the_loop_and_are_those_that_are_scored(top_k, length, camera_filter):
    settings = Settings(top_k, camera_filter, 0.3)
    result = ranked_lists(QUERY, GALLERY, rescore, settings, length)
    scored = evaluate(QUERY, GALLERY, rescore, settings)
    for name, weight in {"individual": None, "conditional": 1.0, "mixed": 0.3}.items():
        for q, order_L in enumerate(result[name].order_QL.tolist()):
            expected = order_by_hand(q, weight, top_k, camera_filter)[:length]
            assert order_L == expected + [-1] * (length - len(expected))
            for place, g in enumerate(order_L):
                individual, pair = result[name].individual_QL[q, place], result[name].pair_QL[q, place]
                rescored = g >= 0 and g in order_by_hand(q, None, top_k, False)[:top_k]
                assert individual == pytest.approx(1 - QUERY.embedding[q] @ GALLERY.embedding[g], abs=1e-6) or g < 0
                assert np.isnan(individual) == (g < 0) and np.isnan(pair) == (not rescored)
                assert not rescored or pair == PAIR[q, g]
        assert np.nanmean(result[name].statistics.ap) == pytest.approx(scored[name]["mAP"], rel=1e-12)
    assert np.isnan(ranked_lists(QUERY, GALLERY, None, settings, length)["individual"].pair_QL).all()
    assert set(ranked_lists(QUERY, GALLERY, None, settings, length)) == {"individual"}


def test_distractors_do_not_lengthen_what_ranked_lists_keep(monkeypatch):
    """With 500,000 of them, a query would keep as many candidates as distractors have one camera."""
    kept, rank_block = [], rankings.rank_block

    def spy(*args, top_k, **options):
        kept.append(top_k)
        return rank_block(*args, top_k=top_k, **options)

    monkeypatch.setattr(rankings, "rank_block", spy)
    pids = np.concatenate([GALLERY.pids, np.full(200, 9)])
    crowd = images(200, 2)
    gallery = LabelledSet(
        np.concatenate([GALLERY.embedding, crowd.embedding]), pids, np.concatenate([GALLERY.camids, crowd.camids])
    )
    lists = ranked_lists(QUERY, gallery, None, Settings(top_k=2), 5)["individual"].order_QL
    own = max(np.unique(np.stack([GALLERY.pids, GALLERY.camids]), axis=1, return_counts=True)[1])
    assert set(kept) == {5 + own}
    for q, order_L in enumerate(lists):
        order = np.argsort(cosine_distance(QUERY.embedding[q : q + 1], gallery.embedding)[0], kind="stable")
        junk = (pids == QUERY.pids[q]) & (gallery.camids == QUERY.camids[q])
        np.testing.assert_array_equal(order_L, order[~junk[order]][:5])


def test_rankings_of_the_test_differ():
    """Otherwise the tests above could not distinguish them."""
    maps = {round(metrics_by_hand(weight, 6, True)[0]["mAP"], 6) for weight in (None, 1.0, 0.3)}
    assert len(maps) == 3
    assert metrics_by_hand(1.0, 6, True) != metrics_by_hand(1.0, 6, False)


def test_without_pairs_there_is_one_ranking():
    result = evaluate(QUERY, GALLERY, None, Settings(top_k=5), mixes=(0.5,))
    assert result["individual"] == evaluate(QUERY, GALLERY, rescore, Settings(top_k=5))["individual"]
    assert not {"conditional", "mixed", "mAP_by_mix"} & set(result)
    assert "individual" in table(result) and "conditional" not in table(result)


def test_top_k_beyond_the_gallery_is_reduced_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate(QUERY, GALLERY, rescore, Settings(top_k=100))
    assert "config.eval.top_k: found 100, reduced to the 20 gallery images" in caplog.text
    assert result["top_k"] == 20
    assert result == evaluate(QUERY, GALLERY, rescore, Settings(top_k=20))


@pytest.mark.parametrize(("num_query", "num_gallery"), [(0, 20), (7, 0)])
@pytest.mark.parametrize("pairs", [rescore, None], ids=["pairs", "individual"])
def test_an_empty_side_is_one_clear_error(num_query, num_gallery, pairs):
    with pytest.raises(UserError, match=f"{num_query} quer.*{num_gallery} gallery"):
        evaluate(images(num_query, 0), images(num_gallery, 1), pairs, Settings(top_k=5))


def test_ties_keep_the_individual_order_and_nothing_passes_the_candidates():
    """The image at position K + 1 is no candidate, so it stays behind all of them."""
    embedding = np.eye(4, dtype=np.float32)
    gallery = LabelledSet(
        np.stack([embedding[0], embedding[0], embedding[1], embedding[2]]), np.array([1, 2, 0, 0]), np.arange(4)
    )
    query = LabelledSet(embedding[:1], np.array([0]), np.array([9]))
    tied = evaluate(query, gallery, lambda candidates: np.ones(candidates.shape, np.float32), Settings(top_k=3))
    assert tied["conditional"] == tied["individual"]
    requested = []

    def worst(candidates):
        requested.append(candidates.tolist())
        return np.array([[9.0, 8.0, 7.0]], np.float32)

    result = evaluate(query, gallery, worst, Settings(top_k=3))
    assert requested == [[[0, 1, 2]]]  # ties in gallery order
    assert result["conditional"]["mAP"] == (1 / 1 + 2 / 4) / 2 and result["individual"]["mAP"] == (1 / 3 + 2 / 4) / 2


def test_table_shows_per_cent_of_every_ranking():
    lines = table(evaluate(QUERY, GALLERY, rescore, Settings(top_k=5))).splitlines()
    result = evaluate(QUERY, GALLERY, rescore, Settings(top_k=5))
    assert [line.split()[0] for line in lines[1:4]] == ["individual", "conditional", "mixed"]
    assert float(lines[2].split()[1]) == round(100 * result["conditional"]["mAP"], 2)
    assert "7 queries" in lines[4] and "top 5 re-scored" in lines[4]


@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_distances_do_not_depend_on_the_block(chunk, monkeypatch):
    """Equal images have equal distances and blocks of any size agree bit for bit; a float32 BLAS ensures neither."""
    rng = np.random.default_rng(0)
    gallery = np.maximum(rng.standard_normal((1003, 96)), 0).astype(np.float32)
    gallery[1000:] = gallery[:3]
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    query = gallery[100:164]
    monkeypatch.setattr(distances, "_CHUNK_ROWS", chunk)
    whole = cosine_distance(query, gallery.astype(np.float64))
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(
        whole, (1 - (query.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32))
    )
    np.testing.assert_array_equal(whole[:, 1000:], whole[:, :3])
    for size in (1, 7, 33):
        blocks = [cosine_distance(query[i : i + size], gallery.astype(np.float64)) for i in range(0, 64, size)]
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_memory_grows_with_neither_queries_nor_cores(monkeypatch):
    """One block of distances at a time: all distances would take 67 MB, a block for each core 34 MB."""
    monkeypatch.setattr(rankings, "_BLOCK_ELEMENTS", 2**18)
    monkeypatch.setattr(rankings, "_MIN_QUERIES", 4)
    monkeypatch.setattr(rankings.os, "cpu_count", lambda: 16)
    query, gallery = images(256, 0), images(2**16, 1)
    gallery.pids[100:] = 9  # distractors
    tracemalloc.start()
    evaluate(query, gallery, None, Settings(top_k=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
