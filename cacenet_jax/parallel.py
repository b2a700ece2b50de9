"""How one per-device function runs on many devices: the only module that knows pmap from shard_map.

A mapped function has the signature (state, batch) -> (state, metrics). The state is replicated, the batch is split along
its leading axis, and collectives inside the function name the axis AXIS. Both maps give the same numbers.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cacenet_jax.errors import UserError

AXIS = "data"
How = Literal["pmap", "shard_map"]


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises UserError where the devices do not divide the batch."""
    if batch_size % num_devices:
        raise UserError(
            f"config.data.num_ids x config.data.images_per_id: found a batch of {batch_size} images on "
            f"{num_devices} devices, expected a multiple of {num_devices}; change num_ids or images_per_id, "
            "or set config.devices to a divisor"
        )


def pick_devices(count: int) -> list[jax.Device]:
    """The first `count` local devices, all of them for 0; UserError if there are fewer."""
    devices = jax.local_devices()
    if count > len(devices):
        raise UserError(
            f"config.devices: found {count}, but this machine shows {len(devices)} {devices[0].platform} device(s); "
            f"set it to {len(devices)} or less, or 0 for all"
        )
    return devices[: count or None]


class DeviceMap:
    """Runs a per-device step over devices and lays its arguments out.

    Attributes:
        how: "pmap" or "shard_map".
        devices: the devices, in the order of the batch.
    """

    def __init__(self, devices: list[jax.Device], how: How = "pmap"):
        """Keeps the devices; `how` other than pmap and shard_map is a UserError."""
        if how not in ("pmap", "shard_map"):
            raise UserError(f"config.parallel: found {how!r}, expected 'pmap' or 'shard_map'")
        self.how, self.devices = how, devices
        mesh_kwargs = {"axis_types": (jax.sharding.AxisType.Auto,)}
        self.mesh = jax.make_mesh((len(devices),), (AXIS,), devices=devices, **mesh_kwargs)

    def map(self, step: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
        """The compiled step over all devices; the state's memory is donated."""
        if self.how == "pmap":
            return jax.pmap(
                step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices, donate_argnums=(0,)
            )
        replicated, split = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step, mesh=self.mesh, in_specs=(replicated, split), out_specs=replicated, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=(0,))

    def split(self, batch: Any) -> Any:
        """Host arrays with the whole batch along axis 0, laid out for the mapped step."""
        count = len(self.devices)
        if self.how == "pmap":
            return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), batch)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)

    def replicate(self, state: Any) -> Any:
        """The state on every device."""
        return jax.device_put(state, NamedSharding(self.mesh, PartitionSpec()))


def transpose_grid(grid_RC: jax.Array, axis_name: str | None) -> jax.Array:
    """The transposed pair grid, rows split over devices before and after: value (u, v) becomes value (v, u).

    Args:
        grid_RC: this device's rows and all columns, (R, C, ...), R the images of one device.
        axis_name: device axis, None on one device.

    Returns:
        (R, C, ...): for this device's images u and all images v, what stood at (v, u).
    """
    if axis_name is not None:
        grid_RC = jax.lax.all_to_all(grid_RC, axis_name, split_axis=1, concat_axis=0, tiled=True)
    return grid_RC.swapaxes(0, 1)
