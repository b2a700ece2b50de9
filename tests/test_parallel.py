"""One global batch, any number of devices, pmap or shard_map: the same loss, gradients and statistics."""

import jax
import numpy as np
import optax
import pytest
from tiny_training import batch_of, fast_compile, network, state_of, step_of, tiny_config

from cacenet_jax.data.augment import Augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.errors import UserError
from cacenet_jax.parallel import AXIS, DeviceMap, check_divisible, pick_devices, transpose_grid

MAPS = ("pmap", "shard_map")


def device_cases(*quick):
    """Both maps on 1, 2, 4 and 8 devices; each compiles for seconds, so all but the named ones are marked slow."""
    cases = [(how, count) for how in MAPS for count in (1, 2, 4, 8)]
    marked = [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("how", "count"), marked)


@pytest.fixture(autouse=True)
def _fast_compile():
    with fast_compile():
        yield


def start(config, dtype, one_block):
    return state_of(network(config, None, one_block), optax.sgd(1.0), dtype)


def on_one(config, dtype="float32", one_block=True, batch=None, augmentation=None):
    """The step without any device axis; SGD of rate 1, so that parameters move by their gradient."""
    step = jax.jit(step_of(config, one_block=one_block, augmentation=augmentation))
    return jax.device_get(step(start(config, dtype, one_block), batch or batch_of(dtype)))


def on_devices(config, how, count, dtype="float32", one_block=True, batch=None, augmentation=None):
    devices = DeviceMap(pick_devices(count), how)
    step = devices.map(step_of(config, axis_name=AXIS, one_block=one_block, augmentation=augmentation))
    state = devices.replicate(start(config, dtype, one_block))
    return jax.device_get(step(state, devices.split(batch or batch_of(dtype))))


def assert_same(found, expected, before, tolerance):
    """Metrics, gradients (what SGD of rate 1 moved) and statistics, each leaf relative to its size."""
    (state, metrics), (want_state, want_metrics) = found, expected
    pairs = {
        "gradient": [jax.tree.map(np.subtract, s.params, before.params) for s in (state, want_state)],
        "statistics": [state.batch_stats, want_state.batch_stats],
        "metrics": [metrics, want_metrics],
    }
    for name, (have, want) in pairs.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(want)
        largest = max(np.abs(x).max() for _, x in flat)
        for (path, b), a in zip(flat, jax.tree.leaves(have), strict=True):
            # A leaf of rounding noise alone (a bias before a norm) has no size of its own.
            size = max(np.linalg.norm(b), 1e-4 * largest)
            assert np.linalg.norm(a - b) <= tolerance * size, (name, jax.tree_util.keystr(path), a, b)


@pytest.fixture(scope="module")
def reference():
    """One device's result, computed once for each type and network."""
    cache = {}

    def get(dtype, one_block):
        if (dtype, one_block) not in cache:
            config = tiny_config(dtype)
            cache[dtype, one_block] = start(config, dtype, one_block), on_one(config, dtype, one_block)
        return cache[dtype, one_block]

    return get


@device_cases(("pmap", 1), ("pmap", 8), ("shard_map", 2), ("shard_map", 4))
def test_devices_agree_in_float64(x64, reference, how, count):
    before, expected = reference("float64", True)
    found = on_devices(tiny_config("float64"), how, count, "float64")
    assert found[1]["loss"].dtype == np.float64
    assert all(x.dtype == np.float64 for x in jax.tree.leaves((found[0].params, found[0].batch_stats)))
    assert_same_float64(found, expected, before)


def assert_same_float64(found, expected, before):
    shares = ("accuracy", "positive_intra", "positive_cross")  # float32 by design
    for name in shares:
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-6)
    exact = [(state, {k: v for k, v in metrics.items() if k not in shares}) for state, metrics in (found, expected)]
    assert_same(*exact, before, 1e-10)


@device_cases(("pmap", 4))
def test_devices_agree_in_float64_on_a_resnet(x64, reference, how, count):
    before, expected = reference("float64", False)
    assert_same_float64(on_devices(tiny_config("float64"), how, count, "float64", False), expected, before)


@device_cases(("pmap", 4), ("shard_map", 8))
def test_devices_agree_in_float32(reference, how, count):
    before, expected = reference("float32", True)
    assert_same(on_devices(tiny_config(), how, count), expected, before, 1e-5)


def test_devices_agree_with_batch_normed_keys_and_clues_in_blocks(x64):
    """The grid's columns come from other devices, in blocks that do not divide them."""
    config = tiny_config("float64", affinity="correlation", filters="untied", clue_weight=0.3, block=3)
    before = start(config, "float64", True)
    assert_same_float64(on_devices(config, "pmap", 4, "float64"), on_one(config, "float64"), before)


def test_devices_agree_on_the_augmentation():
    """Raw pixels: an image's flip, crop and erasing follow its place in the global batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 16, 3), np.uint8)
    batch, settings, config = Batch(pixels, batch_of().labels), Augment(pad=2), tiny_config(pairs=False)
    expected = on_one(config, batch=batch, augmentation=settings)
    found = on_devices(config, "pmap", 4, batch=batch, augmentation=settings)
    assert_same(found, expected, start(config, "float32", True), 1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("how", MAPS)
def test_transpose_grid_swaps_the_global_rows_and_columns(how, count):
    grid_BBF = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    devices = DeviceMap(pick_devices(count), how)

    def step(state, rows):
        return state, jax.lax.all_gather(transpose_grid(rows, AXIS), AXIS, tiled=True)

    _, found = devices.map(step)(devices.replicate(np.zeros(1, np.float32)), devices.split(grid_BBF))
    np.testing.assert_array_equal(found, grid_BBF.swapaxes(0, 1))
    np.testing.assert_array_equal(transpose_grid(jax.numpy.asarray(grid_BBF), None), grid_BBF.swapaxes(0, 1))


def test_impossible_devices_are_refused():
    check_divisible(16, 8)
    with pytest.raises(UserError, match=r"batch of 12 images on 8 devices"):
        check_divisible(12, 8)
    with pytest.raises(UserError, match=r"config.devices: found 9, but this machine shows 8"):
        pick_devices(9)
    assert len(pick_devices(0)) == 8 and len(pick_devices(3)) == 3
