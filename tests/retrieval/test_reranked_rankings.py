"""Rankings by Euclidean and by re-ranked distances, against the distances of the methods and a loop."""

import numpy as np
import pytest

from cacenet_jax.retrieval.distances import cosine_distance, euclidean_distance
from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.query_expansion import query_expansion
from cacenet_jax.retrieval.rankings import METRICS, LabelledSet, Settings, evaluate
from cacenet_jax.retrieval.rerank import k_reciprocal
from cacenet_jax.retrieval.results_table import table

RNG = np.random.default_rng(3)
CENTRES = RNG.standard_normal((8, 6))


def images(count, scale=1.0):
    """Embeddings around the centres of their identities, of lengths that differ."""
    pids = RNG.integers(0, 8, count)
    embedding = (CENTRES[pids] + RNG.standard_normal((count, 6))) * RNG.uniform(1, scale, (count, 1))
    return LabelledSet(embedding.astype(np.float32), pids, RNG.integers(0, 3, count))


def unit(labelled):
    norm = np.linalg.norm(labelled.embedding, axis=1, keepdims=True)
    return labelled._replace(embedding=labelled.embedding / norm)


QUERY, GALLERY = images(9, 3.0), images(60, 3.0)
PAIR = RNG.uniform(0, 2, (9, 60)).astype(np.float32)


def rescore(candidates_QK):
    return np.take_along_axis(PAIR, candidates_QK, axis=1)


def by_matrix(distance_QG):
    scores = evaluate_ranking(distance_QG, QUERY.pids, GALLERY.pids, QUERY.camids, GALLERY.camids)
    return {metric: scores[metric] for metric in METRICS}


def literal_euclidean(a, b):
    return np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b.astype(np.float64)] for x in a.astype(np.float64)])


def test_euclidean_distances_equal_the_loop():
    distance = euclidean_distance(QUERY.embedding, GALLERY.embedding)
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance, literal_euclidean(QUERY.embedding, GALLERY.embedding), rtol=1e-6)
    same = euclidean_distance(QUERY.embedding, QUERY.embedding)
    assert np.abs(np.diag(same)).max() < 1e-6


def test_the_individual_ranking_is_by_the_distance_that_is_asked_for():
    result = evaluate(QUERY, GALLERY, None, Settings(distance="euclidean"))
    expected = by_matrix(literal_euclidean(QUERY.embedding, GALLERY.embedding))
    cosine = evaluate(unit(QUERY), unit(GALLERY), None, Settings())["individual"]
    assert result["individual"] == pytest.approx(expected, rel=1e-12) != cosine
    on_sphere = evaluate(unit(QUERY), unit(GALLERY), None, Settings(distance="euclidean"))["individual"]
    assert on_sphere == pytest.approx(cosine, rel=1e-12)


def reranked_by(method, query, gallery):
    if method == "query_expansion":
        return cosine_distance(query_expansion(query, gallery, 5, 3.0), gallery)
    pairs = ((query, gallery), (query, query), (gallery, gallery))
    return k_reciprocal(*(literal_euclidean(a, b) for a, b in pairs))


@pytest.mark.parametrize("method", ["k_reciprocal", "query_expansion"])
def test_reranked_rows_equal_the_method_and_the_loop(method):
    query, gallery = unit(QUERY), unit(GALLERY)
    settings = Settings(top_k=12, mix=0.3, rerank=method)
    result = evaluate(query, gallery, rescore, settings)
    distance_QG = reranked_by(method, query.embedding, gallery.embedding)
    assert result[f"individual, {method}"] == pytest.approx(by_matrix(distance_QG), rel=1e-6)
    assert result[f"individual, {method}"] != result["individual"]
    mixed_QG = np.empty_like(distance_QG)
    for q, row in enumerate(distance_QG):  # the first twelve are scored again, all others stay behind them
        order = sorted(range(60), key=lambda g, row=row: (row[g], g))
        first = sorted(order[:12], key=lambda g, q=q, row=row: 0.3 * PAIR[q, g] + 0.7 * row[g])
        mixed_QG[q, first + order[12:]] = np.arange(60)
    assert result[f"mixed, {method}"] == pytest.approx(by_matrix(mixed_QG), rel=1e-6)
    plain = evaluate(query, gallery, rescore, Settings(top_k=12, mix=0.3))
    assert {name: result[name] for name in plain} == plain
    assert "rerank_seconds" not in evaluate(query, gallery, rescore, settings, mixes=(0.3,))  # validation
    assert result["rerank_seconds"] > 0 and 0.01 < result["peak_gib"] < 100


def test_the_table_has_a_row_for_each_ranking():
    result = evaluate(unit(QUERY), unit(GALLERY), rescore, Settings(top_k=12, rerank="k_reciprocal"))
    lines = table(result).splitlines()
    names = ["individual", "conditional", "mixed", "individual, k_reciprocal", "mixed, k_reciprocal"]
    assert [line[:25].strip() for line in lines[1:6]] == names
    assert ", top 12 re-scored, re-ranked in 0.0 s (peak " in lines[-1]
    assert len({len(line) for line in lines[:6]}) == 1
