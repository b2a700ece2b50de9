"""Where the per-image terms of a set of images live: on the devices, in host memory, or in temporary files.

Image i stands in batch i // B at column i % B, and the columns of a batch are split over the devices of the mesh, so that
what a device computes is stored where it was computed. A process holds the columns of its own devices alone.

Half-precision numbers are kept as their bits, in uint16: XLA's CPU widens every bfloat16 operation to float32, even a copy,
so that writing one batch or picking one image would convert whole arrays.

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

_CHUNK_LIMIT = 2**31  # bytes of a gallery chunk on one device: more would only delay the first one


class Room(NamedTuple):
    """How much the terms of query and gallery may take together.

    Attributes:
        device_bytes: on each device.
        host_bytes: in the memory of this process.
        folder: where temporary files lie past that.
    """

    device_bytes: int
    host_bytes: int
    folder: str | os.PathLike = "."


Place = Literal["device", "memory", "file"]


class Plan(NamedTuple):
    """Where terms live and how many batches of them are on the devices at a time.

    Attributes:
        place: all on the devices; else query blocks and gallery chunks come from the host's memory or its files.
        block: batches of queries at a time, on every device.
        chunk: batches of the gallery at a time, split over the devices.
    """

    place: Place
    block: int
    chunk: int


def room(mesh: Mesh, device_gib: float, memory_gib: float, folder: str | os.PathLike[str]) -> Room:
    """The room that a config gives: of all processes the smallest, because they make the same plan.

    Args:
        mesh: the devices.
        device_gib: of each device; 0 for 0.6 of what an accelerator has. A CPU's memory is the host's, of which its
            devices get equal parts.
        memory_gib: of the host, for one process.
        folder: for temporary files.
    """
    host = round(memory_gib * 2**30)
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        given = host / len(mesh.local_devices)
        found = Room(round(min(device_gib * 2**30, given) if device_gib else given), host // 4, folder)
    else:
        if not device_gib:
            stats = device.memory_stats() or {}
            device_gib = 0.6 * stats.get("bytes_limit", 8 * 2**30) / 2**30
        found = Room(round(device_gib * 2**30), host, folder)
    if jax.process_count() == 1:
        return found
    mib = np.asarray([found.device_bytes >> 20, found.host_bytes >> 20], np.int32)
    device_mib, host_mib = np.min(multihost_utils.process_allgather(mib), axis=0)
    return Room(int(device_mib) << 20, int(host_mib) << 20, folder)


def make_plan(image_bytes: int, num_query: int, num_gallery: int, batch: int, mesh: Mesh, room: Room) -> Plan:
    """Decides where the terms of query and gallery live.

    Args:
        image_bytes: of one image's terms.
        num_query: query images.
        num_gallery: gallery images.
        batch: B, a multiple of the devices.
        mesh: the devices.
        room: what may be used.
    """
    queries, gallery = -(-num_query // batch), -(-num_gallery // batch)
    split, whole = image_bytes * batch // mesh.size, image_bytes * batch  # of a batch, on one device
    # On one device a block of queries is the stored array itself; on several it is gathered beside it.
    need = split * (queries + gallery) + (whole * queries if mesh.size > 1 else 0)
    if need <= room.device_bytes:
        return Plan("device", queries, gallery)
    mine = split * len(mesh.local_devices) * (queries + gallery)
    block = min(max(room.device_bytes // 4 // whole, 1), queries)  # the next block comes while this one is still there
    chunk = min(max(min(room.device_bytes // 8, _CHUNK_LIMIT) // split, 1), gallery)
    # Equal parts, so that the last one is not mostly filling.
    place: Literal["memory", "file"] = "memory" if mine <= room.host_bytes else "file"
    return Plan(place, -(-queries // -(-queries // block)), -(-gallery // -(-gallery // chunk)))


def global_array(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds in full, laid out over the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds in full, on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and (x.sharding == sharding or sharding.is_fully_addressable):
            return jax.device_put(x, sharding)
        return global_array(np.asarray(x), sharding)

    return jax.tree.map(place, tree)


def allocate(like: Any, place: Literal["memory", "file"], folder: str | os.PathLike[str]) -> Any:
    """Host arrays of the shapes and types of `like`, in memory or in temporary files under `folder`.

    A file's name is gone at once and its content with the array, or with the process. Its space is reserved at once: a disk
    that is too small is known before anything is computed, and no write to a mapped page can fail.

    Raises:
        UserError: the folder cannot be written or has too little room.
    """
    if place == "memory":
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    need, name = tree_bytes(like), os.fspath(folder)
    try:
        free = shutil.disk_usage(folder).free
        if need <= free:
            return jax.tree.map(functools.partial(_mapped, folder=folder), like)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{name}: found no folder that temporary files can be written to ({error.strerror}), expected one with room "
                f"for {_gib(need)}; set config.data.dir to another one or raise config.eval.memory_gib"
            ) from error
    raise UserError(
        f"{name}: found {_gib(free)} free, expected {_gib(need)} for the maps that are compared in re-scoring; free some, "
        "set config.data.dir to another disk, or raise config.eval.memory_gib"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _mapped(like: Any, folder: str | os.PathLike[str]) -> np.ndarray:
    size = math.prod(like.shape) * np.dtype(like.dtype).itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                    raise
        return np.memmap(file, like.dtype, "w+", shape=like.shape)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what has shapes and types like them."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def bits_type(dtype: Any) -> np.dtype:
    """The type that numbers are kept as."""
    return np.dtype(np.uint16 if np.dtype(dtype).itemsize == 2 else dtype)


def unpack(tree: Any, like: Any) -> Any:
    """Kept bits to numbers of the types of `like`; changes no memory."""

    def numbers(x: jax.Array, one: Any) -> jax.Array:
        return x if x.dtype == one.dtype else jax.lax.bitcast_convert_type(x, one.dtype)

    return jax.tree.map(numbers, tree, like)


class Store:
    """Terms of n images, written batch by batch and read in runs of batches.

    Attributes:
        like: shape and type of each array for one image.
        count: n.
        batch: B.
        steps: T.
        mesh: the devices.
    """

    def __init__(
        self,
        like: Any,
        count: int,
        batch: int,
        mesh: Mesh,
        place: Place = "device",
        folder: str | os.PathLike = ".",
    ):
        """Allocates.

        Args:
            like: what has the shape and type of each array for one image, without a leading axis.
            count: n.
            batch: B, a multiple of the mesh's devices.
            mesh: the devices.
            place: where to live.
            folder: for files.
        """
        self.like, self.count, self.batch, self.steps, self.mesh = like, count, batch, -(-count // batch), mesh
        self._columns = batch // mesh.size * len(mesh.local_devices)
        self._sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
        self.resident = place == "device"
        columns = batch if place == "device" else self._columns
        kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.steps, columns, *x.shape), bits_type(x.dtype)), like)
        if place == "device":
            self._arrays = jax.tree.map(lambda x: _zeros(x.shape, x.dtype, self._sharding)(), kept)
        else:
            self._arrays = allocate(kept, place, folder)

    def put(self, step: int, terms: Any) -> None:
        """Stores a batch: device arrays with leading axis B, split over the devices."""
        if self.resident:
            self._arrays = _write(self.mesh)(self._arrays, terms, np.int32(step))
            return
        for target, source in zip(jax.tree.leaves(self._arrays), jax.tree.leaves(terms), strict=True):
            shards = sorted(source.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            size = self._columns // len(shards)
            for place, shard in enumerate(shards):
                target[step, place * size : (place + 1) * size] = np.asarray(shard.data).view(target.dtype)

    def run(self, start: int, length: int) -> Any:
        """Device arrays (length, B, ...), columns split over the devices, as bits; past the end they are 0."""
        if self.resident:
            if (start, length) != (0, self.steps):
                raise ValueError("a store on the devices is read as a whole")
            return self._arrays
        stop = min(start + length, self.steps)

        def load(x: np.ndarray) -> jax.Array:
            part = _aligned((length, *x.shape[1:]), x.dtype)
            part[: stop - start] = x[start:stop]  # a copy: the disk is read here, not by the device
            part[stop - start :] = 0
            shape = (length, self.batch, *x.shape[2:])
            return jax.make_array_from_process_local_data(self._sharding, part, shape)

        return jax.tree.map(load, self._arrays)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of undefined content that a CPU device takes over without copying it."""
    size, edge = math.prod(shape) * np.dtype(dtype).itemsize, 64
    room = np.empty(size + edge, np.uint8)
    offset = -room.ctypes.data % edge
    return room[offset : offset + size].view(dtype).reshape(shape)


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=4)
def _write(mesh: Mesh) -> Any:
    """Writes a batch into arrays whose memory it takes over."""

    def one(kept: jax.Array, batch: jax.Array, step: jax.Array) -> jax.Array:
        bits = batch if batch.dtype == kept.dtype else jax.lax.bitcast_convert_type(batch, kept.dtype)
        return jax.lax.dynamic_update_index_in_dim(kept, bits, step, 0)

    def write(arrays: Any, batch: Any, step: jax.Array) -> Any:
        return jax.tree.map(lambda x, b: one(x, b, step), arrays, batch)

    axis = mesh.axis_names[0]
    specs = PartitionSpec(None, axis), PartitionSpec(axis), PartitionSpec()
    return jax.jit(
        jax.shard_map(write, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False), donate_argnums=0
    )


@functools.lru_cache(maxsize=4)
def gather_all(mesh: Mesh) -> Any:
    """Arrays whose columns are split over the devices to arrays that every device holds; nothing to do for one device."""
    if mesh.size == 1:
        return lambda tree: tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
