import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval import rerank
from cacenet_jax.retrieval.metrics import evaluate_ranking
from cacenet_jax.retrieval.query_expansion import query_expansion
from cacenet_jax.retrieval.rerank import k_reciprocal, k_reciprocal_features


def dense(qg, qq, gg, k1=20, k2=6, lambda_value=0.3):
    """The authors' loop over dense arrays (Zhong et al. 2017), with a stable sort."""
    query_num, all_num = len(qg), sum(qg.shape)
    distance = np.concatenate([np.concatenate([qq, qg], axis=1), np.concatenate([qg.T, gg], axis=1)], axis=0)
    distance = np.power(distance, 2)
    distance = np.transpose(distance / np.max(distance, axis=0))
    V = np.zeros_like(distance)
    rank = np.argsort(distance, axis=1, kind="stable")

    def reciprocal(i, k):
        forward = rank[i, : k + 1]
        return forward[np.where(rank[forward, : k + 1] == i)[0]]

    for i in range(all_num):
        own = reciprocal(i, k1)
        expanded = own
        for candidate in own:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        weight = np.exp(-distance[i, expanded])
        V[i, expanded] = weight / np.sum(weight)
    if k2 != 1:
        V = np.stack([V[rank[i, :k2]].mean(axis=0) for i in range(all_num)])
    jaccard = np.zeros((query_num, all_num), distance.dtype)
    for i in range(query_num):
        for j in range(all_num):
            shared = np.minimum(V[i], V[j]).sum()
            jaccard[i, j] = 1 - shared / (2 - shared)
    return (jaccard * (1 - lambda_value) + distance[:query_num] * lambda_value)[:, query_num:]


def features(seed, num_query, num_gallery, dtype=np.float64, groups=6):
    """Features around a few centres, so that neighbourhoods overlap."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((groups, 8))
    pids = rng.integers(0, groups, num_query + num_gallery)
    points = centre[pids] + 0.7 * rng.standard_normal((len(pids), 8))
    return points[:num_query].astype(dtype), points[num_query:].astype(dtype), pids


def euclidean(a, b):
    return np.sqrt(np.square(a[:, None] - b[None]).sum(axis=-1))


def matrices(query, gallery):
    return euclidean(query, gallery), euclidean(query, query), euclidean(gallery, gallery)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((12, 60), {}),
        ((12, 60), {"k1": 20, "k2": 1}),
        ((12, 60), {"k1": 5, "k2": 3, "lambda_value": 0.0}),  # half of 5 rounds to 2, of 7 to 4
        ((12, 60), {"k1": 7, "k2": 3}),
        ((12, 60), {"k1": 3, "k2": 9, "lambda_value": 0.7}),  # k2 exceeds the k1 + 1 neighbours
        ((3, 5), {}),  # k1 exceeds the number of images
        ((1, 1), {}),
        ((2, 40), {"k1": 1, "k2": 2}),
        ((40, 2), {"k1": 6, "k2": 4}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_dense_loop(sizes, options, seed):
    query, gallery, _ = features(seed, *sizes)
    distances = matrices(query, gallery)
    result = k_reciprocal(*distances, **options)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, dense(*distances, **options), rtol=0, atol=1e-13)
    np.testing.assert_allclose(k_reciprocal_features(query, gallery, **options), result, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_dense_loop_with_ties(seed):
    # Points of a small grid: most distances are tied, and some images are equal.
    rng = np.random.default_rng(seed)
    query, gallery = rng.integers(0, 3, (8, 2)).astype(float), rng.integers(0, 3, (40, 2)).astype(float)
    distances = matrices(query, gallery)
    np.testing.assert_allclose(k_reciprocal(*distances, k1=6, k2=3), dense(*distances, k1=6, k2=3), rtol=0, atol=1e-13)


def test_float32_and_jax_arrays():
    query, gallery, _ = features(4, 15, 70, np.float32)
    distances = matrices(query, gallery)
    result = k_reciprocal(*map(jnp.asarray, distances))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, dense(*distances), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(k_reciprocal(*distances), result)


def test_matrices_that_are_not_symmetric_follow_the_columns():
    rng = np.random.default_rng(0)
    distances = rng.random((6, 30)), rng.random((6, 6)), rng.random((30, 30))
    np.testing.assert_allclose(k_reciprocal(*distances, k1=8, k2=3), dense(*distances, k1=8, k2=3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("elements", [1, 100, 3000])
def test_blocks_give_bit_identical_results(elements, monkeypatch):
    query, gallery, _ = features(7, 11, 50)
    distances = matrices(query, gallery)
    expected = k_reciprocal(*distances, k1=8)
    monkeypatch.setattr(rerank, "_BLOCK_ELEMENTS", elements)
    np.testing.assert_array_equal(k_reciprocal(*distances, k1=8), expected)


def test_lambda_one_is_the_original_ranking():
    query, gallery, _ = features(1, 9, 40)
    distance_QG, *others = matrices(query, gallery)
    result = k_reciprocal(distance_QG, *others, lambda_value=1)
    np.testing.assert_array_equal(np.argsort(result, axis=1), np.argsort(distance_QG, axis=1))


def test_distances_among_all_images_are_never_stored(monkeypatch):
    """Of 4,050 images they would take 66 MB; every other array grows with the images, not with their square."""
    monkeypatch.setattr(rerank, "_BLOCK_ELEMENTS", 2**19)
    query, gallery, _ = features(10, 50, 4000, np.float32, groups=200)
    tracemalloc.start()
    k_reciprocal_features(query, gallery)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 33e6


def test_invariant_to_scale_and_gallery_order():
    query, gallery, _ = features(2, 9, 40)
    distances = matrices(query, gallery)
    expected = k_reciprocal(*distances)
    np.testing.assert_allclose(k_reciprocal(*(8.0 * d for d in distances)), expected, rtol=0, atol=1e-13)
    g = np.random.default_rng(0).permutation(40)
    moved = k_reciprocal(distances[0][:, g], distances[1], distances[2][g][:, g])
    np.testing.assert_allclose(moved, expected[:, g], rtol=0, atol=1e-13)


def test_improves_a_clustered_ranking():
    query, gallery, pids = features(3, 30, 150, groups=8)
    distances = matrices(query, gallery)
    labels = (pids[:30], pids[30:], np.zeros(30, np.int64), np.ones(150, np.int64))
    before = evaluate_ranking(distances[0], *labels)["mAP"]
    assert evaluate_ranking(k_reciprocal(*distances), *labels)["mAP"] > before + 0.02


def test_inputs_are_not_modified():
    distances = matrices(*features(5, 6, 20)[:2])
    copies = [d.copy() for d in distances]
    k_reciprocal(*distances)
    for matrix, copy in zip(distances, copies, strict=True):
        np.testing.assert_array_equal(matrix, copy)


def test_identical_images_give_finite_distances():
    result = k_reciprocal(np.zeros((2, 5)), np.zeros((2, 2)), np.zeros((5, 5)), k1=2, k2=2)
    assert np.isfinite(result).all()


def test_impossible_inputs_are_refused():
    qg, qq, gg = matrices(*features(6, 4, 10)[:2])
    with pytest.raises(UserError, match=r"distance_QQ has shape \(10, 10\).*\(4, 10\).*\(4, 4\)"):
        k_reciprocal(qg, gg, qq)
    with pytest.raises(UserError, match=r"distance_GG has shape \(10, 9\).*\(10, 10\)"):
        k_reciprocal(qg, qq, gg[:, :9])
    for options in ({"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}):
        with pytest.raises(UserError, match="re-ranking: found k1"):
            k_reciprocal(qg, qq, gg, **options)
    with pytest.raises(UserError, match="re-ranking: found 0 queries"):
        k_reciprocal(qg[:0], qq[:0, :0], gg)
    gg[7, 3] = np.nan
    with pytest.raises(UserError, match="gallery image 3 are not all finite"):
        k_reciprocal(qg, qq, gg)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (3, 2.0), (5, 0), (99, 3.0)])
def test_query_expansion_equals_a_loop(k, alpha):
    query, gallery, _ = features(8, 6, 20)
    expected = []
    for q in unit(query):
        similarity = [float(q @ g) for g in unit(gallery)]
        total = q.copy()
        for g in sorted(range(20), key=lambda g, s=similarity: (-s[g], g))[:k]:
            total += max(similarity[g], 0.0) ** alpha * unit(gallery)[g]
        expected.append(unit(total))
    np.testing.assert_allclose(query_expansion(query, gallery, k, alpha), expected, rtol=0, atol=1e-13)


def test_query_expansion_by_zero_neighbours_is_the_identity():
    query, gallery, _ = features(9, 6, 20, np.float32)
    result = query_expansion(jnp.asarray(query), jnp.asarray(gallery), 0, 3.0)
    np.testing.assert_array_equal(result, query)
    assert result.dtype == np.float32


def test_query_expansion_improves_a_clustered_ranking():
    query, gallery, pids = features(3, 30, 150, groups=8)
    labels = (pids[:30], pids[30:], np.zeros(30, np.int64), np.ones(150, np.int64))
    before = evaluate_ranking(-unit(query) @ unit(gallery).T, *labels)["mAP"]
    after = evaluate_ranking(-query_expansion(query, gallery, 5, 3.0) @ unit(gallery).T, *labels)["mAP"]
    assert after > before + 0.02


def test_impossible_query_expansions_are_refused():
    query, gallery, _ = features(9, 6, 20)
    with pytest.raises(UserError, match=r"\(6, 8\).*\(20, 7\)"):
        query_expansion(query, gallery[:, :7], 3, 1.0)
    with pytest.raises(UserError, match="k -1"):
        query_expansion(query, gallery, -1, 1.0)
    gallery[2, 2] = np.inf
    with pytest.raises(UserError, match="gallery features: found NaN or inf"):
        query_expansion(query, gallery, 3, 1.0)
