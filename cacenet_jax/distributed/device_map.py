"""How one per-device function runs on many devices: the only module that knows pmap from shard_map.

A mapped function has the signature (state, batch) -> (state, metrics). The state is replicated, the batch is split along
its leading axis, and collectives inside the function name the axis AXIS. Both maps give the same numbers, in one process
or in several (processes.py starts those); each process then brings its own rows of the batch.
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
How = Literal["pmap", "shard_map"]


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises UserError where the devices, those of all processes, do not divide the batch."""
    if batch_size % num_devices:
        raise UserError(
            f"config.data.num_ids x config.data.images_per_id: found a batch of {batch_size} images on "
            f"{num_devices} devices, expected a multiple of {num_devices}; change num_ids or images_per_id, "
            "or set config.devices to a divisor"
        )


def pick_devices(count: int) -> list[jax.Device]:
    """The first `count` devices of every process, all for 0, process by process: the order of a global batch's rows.

    Raises:
        UserError: a process has fewer, or not as many as the others.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    shown = Counter(device.process_index for device in devices)
    fewest = min(shown.values())
    if count > fewest:
        raise UserError(
            f"config.devices: found {count}, but this machine shows {fewest} {devices[0].platform} device(s); "
            f"set it to {fewest} or less, or 0 for all"
        )
    if not count and max(shown.values()) > fewest:
        raise UserError(
            f"config.devices: found processes with {fewest} to {max(shown.values())} devices, expected as many in each; "
            f"set it to {fewest} or less"
        )
    per_process = count or fewest
    by_process = {process: [d for d in devices if d.process_index == process] for process in shown}
    return [device for mine in by_process.values() for device in mine[:per_process]]


def _mesh(devices: list[jax.Device]) -> Mesh:
    """A mesh in the order given; jax.make_mesh may choose another one, and rows would go to other devices."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def global_mesh(count: int = 0) -> Mesh:
    """The devices of `pick_devices` as a mesh with the one axis AXIS."""
    return _mesh(pick_devices(count))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device of a mesh: what checkpoints are loaded as."""
    return NamedSharding(mesh, PartitionSpec())


class DeviceMap:
    """Runs a per-device step over devices and lays its arguments out.

    Attributes:
        how: "pmap" or "shard_map".
        devices: the devices of all processes, in the order of the batch.
        mesh: the same as a mesh.
    """

    def __init__(self, devices: list[jax.Device], how: How = "pmap"):
        """Keeps the devices; `how` other than pmap and shard_map is a UserError."""
        if how not in ("pmap", "shard_map"):
            raise UserError(f"config.parallel: found {how!r}, expected 'pmap' or 'shard_map'")
        self.how, self.devices = how, devices
        self.mesh = _mesh(devices)
        mine = [device for device in devices if device.process_index == jax.process_index()]
        self._spread = len(mine) < len(devices)  # over several processes
        self._local = _mesh(mine)

    def connect(self) -> None:
        """Opens the connections between processes while all of them are here.

        On CPUs the first collective waits 30 s for the others, less than their compilers may differ.
        """
        if self._spread:
            barrier("connect")
            multihost_utils.sync_global_devices("connect")  # orbax's
            ones = self.split(np.ones((self._local.size, 1), np.float32))
            self.map(lambda state, rows: (state, jax.lax.psum(rows, AXIS)))(self.replicate(np.zeros(1)), ones)

    def map(self, step: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
        """The compiled step over all devices; the state's memory is donated."""
        if self.how == "pmap":
            return jax.pmap(
                step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices, donate_argnums=(0,)
            )
        rows = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step, mesh=self.mesh, in_specs=(PartitionSpec(), rows), out_specs=PartitionSpec(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=(0,))

    def split(self, batch: Any) -> Any:
        """Host arrays with this process's rows of the batch along axis 0, laid out for the mapped step."""
        count = self._local.size
        if self.how == "pmap":
            return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        if self._spread:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)

    def replicate(self, state: Any) -> Any:
        """The state on every device, as the mapped step takes and gives it; in several processes all bring the same.

        Takes host arrays, arrays of this process's devices, and what `to_global` gives.
        """
        if not self._spread:
            return jax.device_put(state, replicated(self.mesh))
        if self.how == "shard_map":
            return jax.tree.map(lambda x: _place(x, replicated(self.mesh)), state)
        # pmap of several processes gives each an array of its own devices; given one, it need not compile twice.
        return jax.tree.map(lambda x: _place(x, replicated(self._local)), state)

    def to_global(self, state: Any) -> Any:
        """A replicated state as arrays of all processes' devices, the form that checkpoints take; copies nothing."""
        if not self._spread or self.how == "shard_map":
            return state
        return jax.tree.map(lambda x: _place(x, replicated(self.mesh)), state)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    """A value that every device and process holds, as an array of a replicated sharding; shards that fit are taken."""
    mine = sharding.addressable_devices
    if isinstance(x, jax.Array):
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        if shards.keys() >= mine:
            return jax.make_array_from_single_device_arrays(x.shape, sharding, [shards[device] for device in mine])
        x = next(iter(shards.values()))
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
