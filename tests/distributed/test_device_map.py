"""One global batch, any number of devices, pmap or shard_map: the same loss, gradients and statistics."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from agreement import MAPS, assert_same, assert_same_float64, on_devices, on_one, start
from tiny_training import batch_of, tiny_config

from cacenet_jax.data.augment import Augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed import device_map
from cacenet_jax.distributed.collectives import all_gather, pmean, transpose_grid
from cacenet_jax.distributed.device_map import (
    AXIS,
    DeviceMap,
    check_divisible,
    global_mesh,
    pick_devices,
)
from cacenet_jax.errors import UserError
from cacenet_jax.run import compilation

CASES = [(mode, count) for mode in MAPS for count in (1, 2, 4, 8)]


def device_cases(*quick):
    """Both modes on 1, 2, 4 and 8 devices; all but the given cases are marked slow."""
    marked = [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in CASES]
    return pytest.mark.parametrize(("mode", "count"), marked)


@pytest.fixture(scope="module")
def reference():
    """Result on one device, computed once for each dtype and network."""
    cache = {}

    def get(dtype, one_block):
        if (dtype, one_block) not in cache:
            config = tiny_config(dtype)
            cache[dtype, one_block] = start(config, dtype, one_block), on_one(config, dtype, one_block)
        return cache[dtype, one_block]

    return get


@device_cases(("pmap", 1), ("pmap", 4), ("shard_map", 2), ("shard_map", 8))
def test_devices_agree_in_float64(x64, reference, mode, count):
    before, expected = reference("float64", True)
    result = on_devices(tiny_config("float64"), mode, count, "float64")
    assert result[1]["loss"].dtype == np.float64
    assert all(x.dtype == np.float64 for x in jax.tree.leaves((result[0].params, result[0].batch_stats)))
    assert_same_float64(result, expected, before)


@pytest.mark.slow
@device_cases(("pmap", 4))
def test_devices_agree_in_float64_on_a_resnet(x64, reference, mode, count):
    before, expected = reference("float64", False)
    assert_same_float64(on_devices(tiny_config("float64"), mode, count, "float64", False), expected, before)


@device_cases(("pmap", 8), ("shard_map", 4))
def test_devices_agree_in_float32(reference, mode, count):
    before, expected = reference("float32", True)
    assert_same(on_devices(tiny_config(), mode, count), expected, before, 1e-5)


def test_devices_agree_with_batch_normed_keys_and_clues_in_blocks(x64):
    """The grid's columns come from other devices, in blocks that do not divide them."""
    config = tiny_config(
        "float64", pair={"keys": "correlation", "filters": "untied", "clue_weight": 0.3}, pair_memory_mib=0.12
    )
    before = start(config, "float64", True)
    assert_same_float64(on_devices(config, "pmap", 4, "float64"), on_one(config, "float64"), before)


@pytest.mark.parametrize(
    "model",
    [
        {"pair_stage": "keypoints"},
        {"pair_stage": "evidence", "pair": {"features": 4}, "pair_memory_mib": 0.12},
        pytest.param({"pair_stage": "evidence", "pair": {"features": 4}, "frozen": True}, marks=pytest.mark.slow),
        pytest.param({"pair": {"alignment": "similarity", "neighbours": 2}}, marks=pytest.mark.slow),
        {"pair": {"alignment": "semantic"}},
        # The grid of attention with a cross block of zeros.
        pytest.param({"pair": {"alignment": "individual"}}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_devices_agree_with_every_alignment(x64, model):
    config, batch = tiny_config("float64", **model), batch_of("float64")
    if model.get("pair") == {"alignment": "semantic"}:
        labels = np.random.default_rng(1).integers(0, 3, (*batch.images.shape[:3], 1)).astype(np.float64)
        batch = Batch(np.concatenate([batch.images, labels], axis=-1), batch.labels)
    expected = on_one(config, "float64", batch=batch)
    assert_same_float64(on_devices(config, "pmap", 4, "float64", batch=batch), expected, start(config, "float64", True))


def test_devices_agree_on_the_augmentation():
    """An image's flip, crop and erasing depend on its index in the global batch alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 16, 3), np.uint8)
    batch, settings, config = Batch(pixels, batch_of().labels), Augment(pad=2), tiny_config(pair_stage="none")
    expected = on_one(config, batch=batch, augmentation=settings)
    result = on_devices(config, "pmap", 4, batch=batch, augmentation=settings)
    assert_same(result, expected, start(config, "float32", True), 1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("mode", MAPS)
def test_transpose_grid_swaps_the_global_rows_and_columns(mode, count):
    grid_BBF = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    devices = DeviceMap(pick_devices(count), mode)

    def step(state, rows):
        return state, jax.lax.all_gather(transpose_grid(rows, AXIS), AXIS, tiled=True)

    _, result = devices.map(step)(devices.replicate(np.zeros(1, np.float32)), devices.split(grid_BBF))
    np.testing.assert_array_equal(result, grid_BBF.swapaxes(0, 1))
    np.testing.assert_array_equal(transpose_grid(jax.numpy.asarray(grid_BBF), None), grid_BBF.swapaxes(0, 1))


@pytest.mark.parametrize("mode", MAPS)
def test_all_gather_and_pmean_are_local_without_an_axis(mode):
    rows_R = np.arange(4, dtype=np.float32)
    devices = DeviceMap(pick_devices(2), mode)

    def step(state, rows):
        return state, (all_gather({"rows": rows}, AXIS), pmean(rows.sum(), AXIS))

    _, (gathered, mean) = devices.map(step)(devices.replicate(np.zeros(1, np.float32)), devices.split(rows_R))
    np.testing.assert_array_equal(gathered["rows"], rows_R)
    assert mean == rows_R.sum() / 2
    assert all_gather(rows_R, None) is rows_R and pmean(rows_R, None) is rows_R


def test_impossible_devices_are_refused():
    check_divisible(16, 8)
    with pytest.raises(UserError, match=r"batch of 12 images on 8 devices"):
        check_divisible(12, 8)
    with pytest.raises(UserError, match=r"config.devices: found 9, but this machine shows 8"):
        pick_devices(9)
    assert len(pick_devices(0)) == 8 and len(pick_devices(3)) == 3


class _Device(NamedTuple):
    """Fields of a device of another process that `pick_devices` reads."""

    process_index: int
    id: int
    platform: str = "tpu"


def test_devices_are_ordered_by_process_as_the_rows_of_a_batch_are(monkeypatch):
    """Chips of a TPU slice are numbered by position, so those of one host are not consecutive."""
    chips = [
        _Device(process, index) for process, index in ((0, 0), (0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (1, 6), (1, 7))
    ]
    monkeypatch.setattr(device_map, "available_devices", lambda: chips)
    assert [device.id for device in pick_devices.__wrapped__(0)] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert [device.id for device in pick_devices.__wrapped__(2)] == [0, 1, 2, 3]
    monkeypatch.setattr(device_map, "available_devices", lambda: chips[:-1])
    with pytest.raises(
        UserError, match=r"processes with 3 to 4 devices, expected the same number in each; set it to 3 or less"
    ):
        pick_devices.__wrapped__(0)


def test_the_mesh_keeps_the_order_of_the_devices():
    devices = pick_devices(4)
    assert list(DeviceMap(devices[::-1]).mesh.devices.flat) == devices[::-1]
    assert list(global_mesh(4).devices.flat) == devices and global_mesh().axis_names == (AXIS,)


@pytest.mark.parametrize("mode", MAPS)
def test_the_state_is_donated_and_the_step_compiled_once(mode):
    devices = DeviceMap(pick_devices(2), mode)
    step = devices.map(lambda state, rows: (state + jax.lax.pmean(rows.sum(), AXIS), rows.sum()))
    state = devices.replicate(np.zeros(3, np.float32))
    before = compilation.num_compiled()
    for _ in range(3):
        old = state
        state, _ = step(state, devices.split(np.ones(4, np.float32)))
        assert old.is_deleted() and devices.to_global(state) is state
    np.testing.assert_array_equal(state, [6.0, 6.0, 6.0])
    assert compilation.num_compiled() == before + 1
