"""Collectives over a named device axis. Without an axis, they are local operations.

Per-device functions take `axis_name: str | None`. With a name, they run inside `jax.pmap` or `jax.shard_map`. With
None, the same function processes the whole batch on one device.
"""

from typing import Any

import jax


def all_gather(x: Any, axis_name: str | None) -> Any:
    """Concatenate the leading axis of each array over all devices.

    Args:
        x: tree of arrays on this device, shape (R, ...).
        axis_name: device axis; if None, `x` is returned unchanged.

    Returns:
        Tree of arrays, shape (R * devices, ...), equal on every device.
    """
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def pmean(x: Any, axis_name: str | None) -> Any:
    """Average each array of a tree over all devices; the identity if `axis_name` is None."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def transpose_grid(grid_RC: jax.Array, axis_name: str | None) -> jax.Array:
    """Transpose a pair grid whose rows are split over devices.

    Entry (u, v) of the result is entry (v, u) of the input.

    Args:
        grid_RC: grid rows of this device's R images, shape (R, C, ...), with columns for all C images.
        axis_name: device axis, or None for a single device.

    Returns:
        Rows of the transposed grid for this device's images, shape (R, C, ...).
    """
    if axis_name is not None:
        grid_RC = jax.lax.all_to_all(grid_RC, axis_name, split_axis=1, concat_axis=0, tiled=True)
    return grid_RC.swapaxes(0, 1)
