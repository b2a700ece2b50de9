"""Mapping of a per-device function over devices; the only module that distinguishes pmap from shard_map.

A mapped function has the signature (state, batch) -> (state, metrics). The state is replicated, the batch is split
along its leading axis, and collectives inside the function use the axis name AXIS. Both mappings produce the same
numbers, in a single process or several (see processes.py). Each process passes its own rows of the batch.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cacenet_jax.distributed.processes import barrier
from cacenet_jax.errors import UserError

AXIS = "data"
MapMode = Literal["pmap", "shard_map"]


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raise UserError unless the global batch size is a multiple of the total number of devices."""
    if batch_size % num_devices:
        raise UserError(
            f"config.data.num_ids x config.data.images_per_id: found a batch of {batch_size} images on "
            f"{num_devices} devices, expected a multiple of {num_devices}; change num_ids or images_per_id, "
            "or set config.devices to a divisor"
        )


def available_devices() -> list[jax.Device]:
    """Return the devices of all processes, and start them if this is the first use.

    Raises:
        UserError: the platform that JAX_PLATFORMS names has no device here, or is unknown.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a platform whose plugin is not installed
        reason = " ".join(str(error).split())[:200] or "its plugin is not installed"
        named = jax.config.values["jax_platforms"]
        raise UserError(
            f"JAX_PLATFORMS: found {named or 'nothing'!r}, for which no device starts ({reason}), expected a platform of "
            "this machine; set JAX_PLATFORMS=cpu, or install jax for that platform (pip install 'jax[cuda12]')"
        ) from error


def pick_devices(count: int) -> list[jax.Device]:
    """Return the first `count` devices of each process, ordered by process like the rows of a global batch.

    Args:
        count: number of devices per process; 0 for all.

    Raises:
        UserError: a process has fewer than `count` devices, or `count` is 0 and processes have different numbers of
            devices.
    """
    devices = sorted(available_devices(), key=lambda device: (device.process_index, device.id))
    devices_per_process = Counter(device.process_index for device in devices)
    fewest = min(devices_per_process.values())
    if count > fewest:
        raise UserError(
            f"config.devices: found {count}, but this machine shows {fewest} {devices[0].platform} device(s); "
            f"set it to {fewest} or less, or 0 for all"
        )
    if not count and max(devices_per_process.values()) > fewest:
        raise UserError(
            f"config.devices: found processes with {fewest} to {max(devices_per_process.values())} devices, expected the "
            f"same number in each; "
            f"set it to {fewest} or less"
        )
    per_process = count or fewest
    by_process = {process: [d for d in devices if d.process_index == process] for process in devices_per_process}
    return [device for members in by_process.values() for device in members[:per_process]]


def _mesh(devices: list[jax.Device]) -> Mesh:
    """Build a one-axis mesh that keeps the given order; jax.make_mesh may reorder devices."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def global_mesh(count: int = 0) -> Mesh:
    """Build a mesh over `pick_devices(count)` with the single axis AXIS."""
    return _mesh(pick_devices(count))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the fully replicated sharding of a mesh, as used for loading checkpoints."""
    return NamedSharding(mesh, PartitionSpec())


class DeviceMap:
    """Mapping of a per-device step over devices, and the layout of its arguments.

    Attributes:
        mode: "pmap" or "shard_map".
        devices: devices of all processes, in batch order.
        mesh: one-axis mesh over these devices.
    """

    def __init__(self, devices: list[jax.Device], mode: MapMode = "pmap"):
        """Set up the meshes.

        Raises:
            UserError: the mode is unknown.
        """
        if mode not in ("pmap", "shard_map"):
            raise UserError(f"config.parallel: found {mode!r}, expected 'pmap' or 'shard_map'; choose one of them")
        self.mode, self.devices = mode, devices
        self.mesh = _mesh(devices)
        local_devices = [device for device in devices if device.process_index == jax.process_index()]
        self._multi_process = len(local_devices) < len(devices)
        self._local_mesh = _mesh(local_devices)

    def connect(self) -> None:
        """Open the connections between processes right after a barrier.

        On CPUs, the first collective times out after 30 s, and compilation may delay some processes by more than that.
        """
        if self._multi_process:
            barrier("connect")
            multihost_utils.sync_global_devices("connect")  # also opens the connection that Orbax uses
            ones = self.split(np.ones((self._local_mesh.size, 1), np.float32))
            self.map(lambda state, rows: (state, jax.lax.psum(rows, AXIS)))(self.replicate(np.zeros(1)), ones)

    def map(self, step: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
        """Map a per-device step over all devices and compile it. The state argument is donated."""
        if self.mode == "pmap":
            return jax.pmap(
                step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices, donate_argnums=(0,)
            )
        rows = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step, mesh=self.mesh, in_specs=(PartitionSpec(), rows), out_specs=PartitionSpec(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=(0,))

    def split(self, batch: Any) -> Any:
        """Split this process's rows of the batch (axis 0 of host arrays) over its devices for the mapped step."""
        count = self._local_mesh.size
        if self.mode == "pmap":
            return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        if self._multi_process:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)

    def replicate(self, state: Any) -> Any:
        """Copy a state to every device for the mapped step. All processes must pass equal states.

        Args:
            state: host arrays, arrays on this process's devices, or the result of `to_global`.
        """
        if not self._multi_process:
            return jax.device_put(state, replicated_sharding(self.mesh))
        if self.mode == "shard_map":
            return jax.tree.map(lambda x: _to_replicated(x, replicated_sharding(self.mesh)), state)
        # With several processes, pmap returns arrays on local devices. An input state with the same layout avoids a
        # recompilation.
        return jax.tree.map(lambda x: _to_replicated(x, replicated_sharding(self._local_mesh)), state)

    def to_global(self, state: Any) -> Any:
        """View a replicated state, without a copy, as global arrays over all devices, which checkpoints require."""
        if not self._multi_process or self.mode == "shard_map":
            return state
        return jax.tree.map(lambda x: _to_replicated(x, replicated_sharding(self.mesh)), state)


def _to_replicated(x: Any, sharding: NamedSharding) -> jax.Array:
    """Convert a value held by every process to a replicated array, reusing shards that are already on the devices."""
    addressable = sharding.addressable_devices
    if isinstance(x, jax.Array):
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        if shards.keys() >= addressable:
            return jax.make_array_from_single_device_arrays(
                x.shape, sharding, [shards[device] for device in addressable]
            )
        x = next(iter(shards.values()))
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
