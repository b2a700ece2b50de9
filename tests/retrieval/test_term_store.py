"""Where terms live: on devices, in memory, in files; how much, and what happens without room."""

import collections
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.term_store import (
    Plan,
    Room,
    Store,
    allocate,
    gather_all,
    make_plan,
    room,
    tree_bytes,
    unpack,
)

LIKE = {"map": jax.ShapeDtypeStruct((3, 2), ml_dtypes.bfloat16), "scale": jax.ShapeDtypeStruct((), np.float32)}
IMAGE_BYTES = 16


def images(count):
    rng = np.random.default_rng(0)
    return {
        "map": rng.standard_normal((count, 3, 2)).astype(ml_dtypes.bfloat16),
        "scale": np.arange(count, dtype=np.float32),
    }


@pytest.mark.parametrize("place", ["device", "memory", "file"])
@pytest.mark.parametrize("devices", [1, 4])
def test_what_is_put_comes_back_in_order_filled_with_nothing(devices, place, tmp_path):
    mesh, values = global_mesh(devices), images(12)
    store = Store(LIKE, 10, 4, mesh, place, tmp_path)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for step in range(3):
        rows = slice(4 * step, 4 * step + 4)
        store.put(step, jax.tree.map(lambda x, rows=rows: jax.device_put(x[rows], split), values))
    found = store.run(0, 3)
    assert found["map"].sharding.spec[1] == "data" and found["map"].dtype == jnp.uint16
    numbers = unpack(found, LIKE)
    assert numbers["map"].dtype == jnp.bfloat16 and numbers["scale"].dtype == jnp.float32
    for name in values:
        np.testing.assert_array_equal(np.asarray(numbers[name]).reshape(12, *values[name].shape[1:]), values[name])
    everywhere = gather_all(mesh)(found)
    assert everywhere["map"].is_fully_replicated
    np.testing.assert_array_equal(everywhere["map"], found["map"])
    if place != "device":
        last = store.run(2, 2)
        np.testing.assert_array_equal(last["scale"], [[8, 9, 10, 11], [0, 0, 0, 0]])
    assert not list(tmp_path.iterdir())


def test_files_keep_their_type_and_reserve_their_space(tmp_path):
    found = allocate(jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), LIKE), "file", tmp_path)
    assert isinstance(found["map"], np.memmap) and found["map"].dtype == ml_dtypes.bfloat16
    assert not list(tmp_path.iterdir())
    held = allocate(LIKE, "memory", tmp_path)
    assert not isinstance(held["map"], np.memmap)


def test_a_disk_without_room_is_one_clear_line(tmp_path, monkeypatch):
    usage = collections.namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    with pytest.raises(
        UserError, match=rf"{tmp_path}: found .* free, expected .*config.data.dir.*config.eval.memory_gib"
    ):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path)
    monkeypatch.undo()

    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)  # a quota, say: the disk has room, the user has not
    with pytest.raises(UserError, match="free, expected"):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no folder that temporary files can be written to"):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path / "nowhere")


def test_plan_takes_the_nearest_place_with_room():
    one, eight = global_mesh(1), global_mesh(8)
    # 5 batches of queries and 20 of the gallery, 25 x 8 images x 16 bytes = 3200.
    plan = lambda device, host, mesh=one: make_plan(IMAGE_BYTES, 40, 160, 8, mesh, Room(device, host))
    assert plan(3200, 0) == Plan("device", 5, 20)
    assert plan(3199, 3200).place == "memory" and plan(3199, 3199).place == "file"
    # Eight devices: an eighth of 3200 each, and all 640 bytes of the queries beside it.
    assert plan(1040, 0, eight) == Plan("device", 5, 20)
    assert plan(1039, 10**6, eight).place == "memory"
    # A quarter of 1024 holds 2 batches of queries (of 5: three blocks of 2), an eighth 1; shared by eight devices, 4 in 512.
    assert plan(1024, 0) == Plan("file", 2, 1)
    assert plan(512, 0, eight) == Plan("file", 1, 4)
    assert plan(1, 0) == Plan("file", 1, 1)  # never less than one batch


def test_room_of_cpu_devices_is_the_memory_of_the_host():
    assert room(global_mesh(1), 0.0, 4.0, "x") == Room(4 << 30, 1 << 30, "x")
    assert room(global_mesh(8), 0.0, 4.0, "x").device_bytes == 1 << 29
    assert room(global_mesh(1), 1.0, 4.0, "x").device_bytes == 1 << 30
    assert tree_bytes(LIKE) == IMAGE_BYTES
