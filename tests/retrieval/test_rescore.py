"""Re-scored distances equal a literal loop, for every location of the terms and every size of a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.rescore import Rescorer, choose_shape
from cacenet_jax.retrieval.term_store import Plan, Store

Q, G, K = 11, 37, 9


def terms(count, seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 3)).astype(np.float32), "none": None}


QUERY, GALLERY = terms(Q, 0), terms(G, 1)
CANDIDATES = np.stack([np.random.default_rng(q).permutation(G)[:K] for q in range(Q)])


def distance(scale, u, v):  # symmetric
    return scale * jnp.abs(u["x"] - v["x"]).sum(axis=-1)


EXPECTED = 2 * np.abs(QUERY["x"][:, None] - GALLERY["x"][CANDIDATES]).sum(axis=-1)


def store(tree, batch, mesh, location="device", folder="."):
    count = len(tree["x"])
    result = Store(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree), count, batch, mesh, location, folder
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    for step in range(result.steps):
        rows = np.minimum(np.arange(step * batch, (step + 1) * batch), count - 1)
        result.put(step, jax.tree.map(lambda x, rows=rows: jax.device_put(x[rows], sharding), tree))
    return result


def rescorer(devices, batch, location, block, chunk, pairs_per_call, folder="."):
    mesh = global_mesh(devices)
    query, gallery = store(QUERY, batch, mesh, location, folder), store(GALLERY, batch, mesh, location, folder)
    plan = Plan(location, block or query.steps, chunk or gallery.steps)
    return Rescorer(distance, jnp.float32(2), query, gallery, plan, pairs_per_call)


@pytest.mark.parametrize("location", ["device", "memory", "file"])
@pytest.mark.parametrize(("devices", "batch"), [(1, 4), (1, 64), (2, 6), (8, 8)])
@pytest.mark.parametrize("pairs_per_call", [1, 7, 1000])
def test_equals_the_loop(devices, batch, location, pairs_per_call, tmp_path):
    result = rescorer(devices, batch, location, 0, 0, pairs_per_call, tmp_path)(CANDIDATES)
    assert result.shape == (Q, K) and result.dtype == np.float32
    np.testing.assert_allclose(result, EXPECTED, rtol=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (2, 3), (3, 100), (1, 5)])
@pytest.mark.parametrize(("devices", "batch"), [(1, 4), (4, 4)])
def test_streamed_in_blocks_and_chunks_equals_the_loop(devices, batch, block, chunk):
    result = rescorer(devices, batch, "memory", block, chunk, 16)(CANDIDATES)
    np.testing.assert_allclose(result, EXPECTED, rtol=1e-6)


def test_images_that_no_query_or_every_query_has_as_candidates():
    """Anchors with very different numbers of pairs, and chunks without a pair."""
    candidates = np.tile(np.array([3, 4, 36]), (Q, 1))
    expected = 2 * np.abs(QUERY["x"][:, None] - GALLERY["x"][candidates]).sum(axis=-1)
    for devices, batch, chunk in [(1, 4, 1), (8, 8, 2)]:
        result = rescorer(devices, batch, "memory", 1, chunk, 5)(candidates)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_calls_are_bounded_and_anchors_are_on_the_side_with_more_pairs():
    whole = rescorer(1, 64, "device", 0, 0, 1000)
    shape = choose_shape(Q * 100, 100, whole.gallery, whole.query, whole.plan, 512)
    assert shape.by_query and shape.width == 8 and shape.rows * shape.width <= 512
    streamed = Plan("file", 1, 1)
    result = rescorer(8, 8, "memory", 1, 1, 1000)
    shape = choose_shape(8 * 100, 2, result.gallery, result.query, streamed, 512)
    assert not shape.by_query  # a query has few candidates on a device, but an image is a candidate of many queries


def test_a_distance_of_nan_names_the_pair():
    gallery = {**GALLERY, "x": GALLERY["x"].copy()}
    gallery["x"][CANDIDATES[0, 5]] = np.nan
    mesh = global_mesh(1)
    plan = Plan("device", 3, 10)
    result = Rescorer(distance, jnp.float32(2), store(QUERY, 4, mesh), store(gallery, 4, mesh), plan, 16)
    with pytest.raises(UserError, match=f"distance nan between query . and gallery image {CANDIDATES[0, 5]}"):
        result(CANDIDATES)
