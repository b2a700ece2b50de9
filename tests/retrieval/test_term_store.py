"""Terms on devices, in memory and in files; the memory budget and plan; errors of a full disk."""

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
    MemoryBudget,
    Plan,
    Store,
    allocate,
    gather_all,
    make_plan,
    memory_budget,
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


@pytest.mark.parametrize("location", ["device", "memory", "file"])
@pytest.mark.parametrize("devices", [1, 4])
def test_batches_are_read_back_in_order_and_padded_with_zeros(devices, location, tmp_path):
    mesh, values = global_mesh(devices), images(12)
    store = Store(LIKE, 10, 4, mesh, location, tmp_path)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for step in range(3):
        rows = slice(4 * step, 4 * step + 4)
        store.put(step, jax.tree.map(lambda x, rows=rows: jax.device_put(x[rows], split), values))
    arrays = store.read(0, 3)
    assert arrays["map"].sharding.spec[1] == "data" and arrays["map"].dtype == jnp.uint16
    numbers = unpack(arrays, LIKE)
    assert numbers["map"].dtype == jnp.bfloat16 and numbers["scale"].dtype == jnp.float32
    for name in values:
        np.testing.assert_array_equal(np.asarray(numbers[name]).reshape(12, *values[name].shape[1:]), values[name])
    replicated = gather_all(mesh)(arrays)
    assert replicated["map"].is_fully_replicated
    np.testing.assert_array_equal(replicated["map"], arrays["map"])
    if location != "device":
        last = store.read(2, 2)
        np.testing.assert_array_equal(last["scale"], [[8, 9, 10, 11], [0, 0, 0, 0]])
    assert not list(tmp_path.iterdir())


def test_files_keep_the_dtype_and_are_unlinked(tmp_path):
    arrays = allocate(jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), LIKE), "file", tmp_path)
    assert isinstance(arrays["map"], np.memmap) and arrays["map"].dtype == ml_dtypes.bfloat16
    assert not list(tmp_path.iterdir())
    in_memory = allocate(LIKE, "memory", tmp_path)
    assert not isinstance(in_memory["map"], np.memmap)


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    usage = collections.namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    with pytest.raises(
        UserError, match=rf"{tmp_path}: found .* free, expected .*config.data.dir.*config.eval.memory_gib"
    ):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path)
    monkeypatch.undo()

    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)  # a quota: the disk has space, the user has not
    with pytest.raises(UserError, match="free, expected"):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="temporary files cannot be written"):
        allocate(jax.ShapeDtypeStruct((101,), np.uint8), "file", tmp_path / "nowhere")


def test_plan_takes_the_fastest_location_with_enough_memory():
    one, eight = global_mesh(1), global_mesh(8)
    # 5 batches of queries and 20 of the gallery, 25 x 8 images x 16 bytes = 3200.
    plan = lambda device, host, mesh=one: make_plan(IMAGE_BYTES, 40, 160, 8, mesh, MemoryBudget(device, host))
    assert plan(3200, 0) == Plan("device", 5, 20)
    assert plan(3199, 3200).location == "memory" and plan(3199, 3199).location == "file"
    # Eight devices: an eighth of 3200 bytes each, and a gathered copy of the queries' 640 bytes.
    assert plan(1040, 0, eight) == Plan("device", 5, 20)
    assert plan(1039, 10**6, eight).location == "memory"
    # A quarter of 1024 holds 2 of 5 batches of queries, an eighth 1 of the gallery; eight devices share 4 in 512.
    assert plan(1024, 0) == Plan("file", 2, 1)
    assert plan(512, 0, eight) == Plan("file", 1, 4)
    assert plan(1, 0) == Plan("file", 1, 1)  # at least one batch


def test_memory_budget_of_cpu_devices_is_the_memory_of_the_host():
    assert memory_budget(global_mesh(1), 0.0, 4.0, "x") == MemoryBudget(4 << 30, 1 << 30, "x")
    assert memory_budget(global_mesh(8), 0.0, 4.0, "x").device_bytes == 1 << 29
    assert memory_budget(global_mesh(1), 1.0, 4.0, "x").device_bytes == 1 << 30
    assert tree_bytes(LIKE) == IMAGE_BYTES
