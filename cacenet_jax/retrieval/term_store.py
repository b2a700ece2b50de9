"""Storage for per-image pair-stage terms on the devices, in host memory or in temporary files.

Terms are the arrays that the pair stage precomputes for each image.

Image i is stored in batch i // B at column i % B. The columns of a batch are sharded over the mesh, so terms stay on
the device that computed them and a process holds only the columns of its own devices.

Half-precision numbers are stored as uint16 bits. On CPUs, XLA converts bfloat16 to float32 in every operation, even a
copy, so writing a batch or reading an image would convert whole arrays.

Legend: n images, T batches of B images, L columns of this process.
"""

import errno
import functools
import math
import os
import shutil
import tempfile
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cacenet_jax.errors import UserError

_CHUNK_LIMIT = 2**31  # bytes of a gallery chunk per device; larger chunks only delay the first result


class MemoryBudget(NamedTuple):
    """Memory available for the terms of query and gallery combined.

    Attributes:
        device_bytes: bytes on each device.
        host_bytes: bytes of host memory for this process.
        folder: folder of temporary files, used if the terms exceed `host_bytes`.
    """

    device_bytes: int
    host_bytes: int
    folder: str | os.PathLike[str] = "."


Location = Literal["device", "memory", "file"]


class Plan(NamedTuple):
    """Location of the terms, and numbers of batches held on the devices at the same time.

    Attributes:
        location: "device" keeps all terms on the devices. Otherwise, query blocks and gallery chunks are read from host
            memory ("memory") or temporary files ("file").
        block: number of query batches loaded at a time, replicated over the devices.
        chunk: number of gallery batches loaded at a time, sharded over the devices.
    """

    location: Location
    block: int
    chunk: int


def memory_budget(mesh: Mesh, device_gib: float, memory_gib: float, folder: str | os.PathLike[str]) -> MemoryBudget:
    """Compute the memory budget.

    It is the minimum over all processes, so all of them make the same plan.

    Args:
        mesh: devices of all processes.
        device_gib: memory on each device in GiB; 0 selects 60% of an accelerator's memory. A CPU device has at most an
            equal share of `memory_gib`, which is also its default.
        memory_gib: host memory per process in GiB.
        folder: folder of temporary files.
    """
    host = round(memory_gib * 2**30)
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        share = host / len(mesh.local_devices)
        budget = MemoryBudget(round(min(device_gib * 2**30, share) if device_gib else share), host // 4, folder)
    else:
        if not device_gib:
            stats = device.memory_stats() or {}
            device_gib = 0.6 * stats.get("bytes_limit", 8 * 2**30) / 2**30
        budget = MemoryBudget(round(device_gib * 2**30), host, folder)
    if jax.process_count() == 1:
        return budget
    mib = np.asarray([budget.device_bytes >> 20, budget.host_bytes >> 20], np.int32)
    device_mib, host_mib = np.min(multihost_utils.process_allgather(mib), axis=0)
    return MemoryBudget(int(device_mib) << 20, int(host_mib) << 20, folder)


def make_plan(image_bytes: int, num_query: int, num_gallery: int, batch: int, mesh: Mesh, budget: MemoryBudget) -> Plan:
    """Choose the location, block size and chunk size for the terms of query and gallery.

    Args:
        image_bytes: size of one image's terms in bytes.
        num_query: number of query images.
        num_gallery: number of gallery images.
        batch: B, a multiple of the number of devices in the mesh.
        mesh: devices of all processes.
        budget: available memory.
    """
    queries, gallery = -(-num_query // batch), -(-num_gallery // batch)
    split, whole = image_bytes * batch // mesh.size, image_bytes * batch  # bytes of a batch on one device
    # On one device, a query block is the stored array itself. On several devices, it is a gathered copy.
    need = split * (queries + gallery) + (whole * queries if mesh.size > 1 else 0)
    if need <= budget.device_bytes:
        return Plan("device", queries, gallery)
    process_bytes = split * len(mesh.local_devices) * (queries + gallery)
    block = min(max(budget.device_bytes // 4 // whole, 1), queries)  # two blocks coexist while the next is loaded
    chunk = min(max(min(budget.device_bytes // 8, _CHUNK_LIMIT) // split, 1), gallery)
    # Use equal parts so that the last one is not mostly padding.
    location: Location = "memory" if process_bytes <= budget.host_bytes else "file"
    return Plan(location, -(-queries // -(-queries // block)), -(-gallery // -(-gallery // chunk)))


def global_array(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Place an array on the devices with the given sharding. Every process must pass the full array."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicate a tree of arrays over the devices. Every process must pass the full arrays."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> jax.Array:
        is_local = isinstance(x, jax.Array) and x.is_fully_addressable and sharding.is_fully_addressable
        if is_local or (isinstance(x, jax.Array) and x.sharding == sharding):
            return jax.device_put(x, sharding)
        return global_array(np.asarray(x), sharding)

    return jax.tree.map(place, tree)


_OTHER_DISK = "set config.data.dir to a folder on another disk or raise config.eval.memory_gib"


def allocate(
    like: Any, location: Literal["memory", "file"], folder: str | os.PathLike[str], remedy: str = _OTHER_DISK
) -> Any:
    """Allocate host arrays with the shapes and dtypes of `like`, in memory or memory-mapped from temporary files.

    Files are unlinked immediately, so they disappear with the array or the process. Their space is reserved up front,
    so a full disk raises an error here instead of causing a bus error when a page is written later.

    Args:
        like: tree of arrays or `jax.ShapeDtypeStruct`s.
        location: "memory" or "file".
        folder: folder of the files.
        remedy: advice for the error message, in the imperative.

    Raises:
        UserError: the folder is not writable or has too little space.
    """
    if location == "memory":
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    need, name = tree_bytes(like), os.fspath(folder)
    try:
        free = shutil.disk_usage(folder).free
        if need <= free:
            return jax.tree.map(functools.partial(_allocate_file, folder=folder), like)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{name}: temporary files cannot be written ({error.strerror}), expected a folder with {_gib(need)} of free "
                f"space; {remedy}"
            ) from error
    raise UserError(
        f"{name}: found {_gib(free)} free, expected {_gib(need)} for the feature maps of re-scoring; free some space, "
        f"or {remedy}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _allocate_file(like: Any, folder: str | os.PathLike[str]) -> np.ndarray:
    """Allocate one array in an unlinked temporary file with reserved space."""
    size = math.prod(like.shape) * np.dtype(like.dtype).itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # unsupported by some file systems
                    raise
        return np.memmap(file, like.dtype, "w+", shape=like.shape)


def named_terms(terms: Any) -> dict[str, Any]:
    """Flatten nested named tuples to arrays by path, for example `clues.salience_N`; None gives an empty dict."""
    named = jax.tree_util.tree_leaves_with_path(terms)
    return {jax.tree_util.keystr(path, simple=True, separator=".") or "terms": x for path, x in named}


def tree_bytes(tree: Any) -> int:
    """Return the total size in bytes of a tree of arrays or `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def storage_dtype(dtype: Any) -> np.dtype:
    """Return the dtype used for storage: uint16 for 2-byte dtypes, otherwise `dtype` itself."""
    return np.dtype(np.uint16 if np.dtype(dtype).itemsize == 2 else dtype)


def unpack(tree: Any, like: Any) -> Any:
    """Reinterpret stored bits as numbers with the dtypes of `like`."""

    def to_numbers(x: jax.Array, like_x: Any) -> jax.Array:
        return x if x.dtype == like_x.dtype else jax.lax.bitcast_convert_type(x, like_x.dtype)

    return jax.tree.map(to_numbers, tree, like)


class Store:
    """Terms of n images, written one batch at a time and read in ranges of batches.

    Attributes:
        like: shapes and dtypes of one image's terms.
        count: n.
        batch: B.
        steps: T.
        mesh: devices of all processes.
        resident: True if the terms are on the devices.
    """

    def __init__(
        self,
        like: Any,
        count: int,
        batch: int,
        mesh: Mesh,
        location: Location = "device",
        folder: str | os.PathLike[str] = ".",
    ):
        """Allocate the arrays.

        Args:
            like: shapes and dtypes of one image's terms, without a leading axis.
            count: n.
            batch: B, a multiple of the number of devices in the mesh.
            mesh: devices of all processes.
            location: storage location of the terms.
            folder: folder of temporary files.
        """
        self.like, self.count, self.batch, self.steps, self.mesh = like, count, batch, -(-count // batch), mesh
        self._columns = batch // mesh.size * len(mesh.local_devices)
        self._sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
        self.resident = location == "device"
        columns = batch if self.resident else self._columns
        stored = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.steps, columns, *x.shape), storage_dtype(x.dtype)), like
        )
        if location == "device":
            self._arrays = jax.tree.map(lambda x: _zeros(x.shape, x.dtype, self._sharding)(), stored)
        else:
            self._arrays = allocate(stored, location, folder)

    def put(self, step: int, terms: Any) -> None:
        """Write the terms of batch `step`, given as device arrays whose leading axis B is sharded over the devices."""
        if self.resident:
            self._arrays = _compile_write(self.mesh)(self._arrays, terms, np.int32(step))
            return
        for target, source in zip(jax.tree.leaves(self._arrays), jax.tree.leaves(terms), strict=True):
            shards = sorted(source.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            size = self._columns // len(shards)
            for index, shard in enumerate(shards):
                target[step, index * size : (index + 1) * size] = np.asarray(shard.data).view(target.dtype)

    def read(self, start: int, length: int) -> Any:
        """Read batches start .. start + length - 1 as device arrays, shape (length, B, ...), with axis B sharded.

        The arrays have the storage dtype (see `unpack`), and batches past the end are 0. A store on the devices can
        only be read as a whole.
        """
        if self.resident:
            if (start, length) != (0, self.steps):
                raise ValueError("a store on the devices is read as a whole")
            return self._arrays
        stop = min(start + length, self.steps)

        def load(x: np.ndarray) -> jax.Array:
            part = _aligned((length, *x.shape[1:]), x.dtype)
            part[: stop - start] = x[start:stop]  # copy, so the disk is read here and not by the device transfer
            part[stop - start :] = 0
            shape = (length, self.batch, *x.shape[2:])
            return jax.make_array_from_process_local_data(self._sharding, part, shape)

        return jax.tree.map(load, self._arrays)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an uninitialised array, aligned so that a CPU device can use it without a copy."""
    size, edge = math.prod(shape) * np.dtype(dtype).itemsize, 64
    buffer = np.empty(size + edge, np.uint8)
    offset = -buffer.ctypes.data % edge
    return buffer[offset : offset + size].view(dtype).reshape(shape)


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=4)
def _compile_write(mesh: Mesh) -> Any:
    """Compile the function that writes a batch into the stored arrays. The stored arrays are donated."""

    def write_one(stored: jax.Array, batch: jax.Array, step: jax.Array) -> jax.Array:
        bits = batch if batch.dtype == stored.dtype else jax.lax.bitcast_convert_type(batch, stored.dtype)
        return jax.lax.dynamic_update_index_in_dim(stored, bits, step, 0)

    def write(arrays: Any, batch: Any, step: jax.Array) -> Any:
        return jax.tree.map(lambda x, b: write_one(x, b, step), arrays, batch)

    axis = mesh.axis_names[0]
    specs = PartitionSpec(None, axis), PartitionSpec(axis), PartitionSpec()
    return jax.jit(
        jax.shard_map(write, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False), donate_argnums=0
    )


@functools.lru_cache(maxsize=4)
def gather_all(mesh: Mesh) -> Any:
    """Return a function that replicates column-sharded arrays over the devices. On one device it is the identity."""
    if mesh.size == 1:
        return lambda tree: tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
