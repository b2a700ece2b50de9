"""The join of candidates with stored terms, against a literal loop, wherever the terms live and whatever a call holds."""

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


def store(tree, batch, mesh, place="device", folder="."):
    count = len(tree["x"])
    found = Store(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree), count, batch, mesh, place, folder
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    for step in range(found.steps):
        rows = np.minimum(np.arange(step * batch, (step + 1) * batch), count - 1)
        found.put(step, jax.tree.map(lambda x, rows=rows: jax.device_put(x[rows], sharding), tree))
    return found


def rescorer(devices, batch, place, block, chunk, pairs_per_call, folder="."):
    mesh = global_mesh(devices)
    query, gallery = store(QUERY, batch, mesh, place, folder), store(GALLERY, batch, mesh, place, folder)
    plan = Plan(place, block or query.steps, chunk or gallery.steps)
    return Rescorer(distance, jnp.float32(2), query, gallery, plan, pairs_per_call)


@pytest.mark.parametrize("place", ["device", "memory", "file"])
@pytest.mark.parametrize(("devices", "batch"), [(1, 4), (1, 64), (2, 6), (8, 8)])
@pytest.mark.parametrize("pairs_per_call", [1, 7, 1000])
def test_equals_the_loop(devices, batch, place, pairs_per_call, tmp_path):
    found = rescorer(devices, batch, place, 0, 0, pairs_per_call, tmp_path)(CANDIDATES)
    assert found.shape == (Q, K) and found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (2, 3), (3, 100), (1, 5)])
@pytest.mark.parametrize(("devices", "batch"), [(1, 4), (4, 4)])
def test_streamed_in_blocks_and_chunks_equals_the_loop(devices, batch, block, chunk):
    found = rescorer(devices, batch, "memory", block, chunk, 16)(CANDIDATES)
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-6)


def test_images_that_no_query_wants_and_those_that_all_want():
    """Lists of very uneven length, and chunks without a pair."""
    candidates = np.tile(np.array([3, 4, 36]), (Q, 1))
    expected = 2 * np.abs(QUERY["x"][:, None] - GALLERY["x"][candidates]).sum(axis=-1)
    for devices, batch, chunk in [(1, 4, 1), (8, 8, 2)]:
        found = rescorer(devices, batch, "memory", 1, chunk, 5)(candidates)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_call_holds_no_more_pairs_than_allowed_and_anchors_are_the_longer_lists():
    found = rescorer(1, 64, "device", 0, 0, 1000)
    shape = choose_shape(Q * 100, 100, found.gallery, found.query, found.plan, 512)
    assert shape.by_query and shape.width == 8 and shape.rows * shape.width <= 512
    streamed = Plan("file", 1, 1)
    found = rescorer(8, 8, "memory", 1, 1, 1000)
    shape = choose_shape(8 * 100, 2, found.gallery, found.query, streamed, 512)
    assert not shape.by_query  # few candidates of a query lie on a device, but many queries want an image


def test_a_distance_that_is_no_number_names_the_pair():
    gallery = {**GALLERY, "x": GALLERY["x"].copy()}
    gallery["x"][CANDIDATES[0, 5]] = np.nan
    mesh = global_mesh(1)
    plan = Plan("device", 3, 10)
    found = Rescorer(distance, jnp.float32(2), store(QUERY, 4, mesh), store(gallery, 4, mesh), plan, 16)
    with pytest.raises(UserError, match=f"distance of nan between query . and gallery image {CANDIDATES[0, 5]}"):
        found(CANDIDATES)
