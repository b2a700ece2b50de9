"""Collectives over a named device axis that reduce to local operations when there is no axis.

Per-device functions take `axis_name: str | None`. With a name they run under `jax.pmap` or `jax.shard_map`; with None the
same function handles the whole batch on one device.
"""

from typing import Any

import jax


def all_gather(x: Any, axis_name: str | None) -> Any:
    """Concatenate the leading axis of each array over all devices.

    Args:
        x: tree of arrays (R, ...), this device's share.
        axis_name: device axis; None returns `x`.

    Returns:
        Tree of arrays (R * devices, ...), equal on every device.
    """
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def pmean(x: Any, axis_name: str | None) -> Any:
    """Average each array of a tree over all devices; the identity where `axis_name` is None."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def transpose_grid(grid_RC: jax.Array, axis_name: str | None) -> jax.Array:
    """Transpose a pair grid whose rows are split over devices: entry (u, v) of the result is entry (v, u) of the input.

    Args:
        grid_RC: rows of this device's R images and all C columns, (R, C, ...).
        axis_name: device axis; None on one device.

    Returns:
        (R, C, ...): entries (v, u) for this device's images u and all images v.
    """
    if axis_name is not None:
        grid_RC = jax.lax.all_to_all(grid_RC, axis_name, split_axis=1, concat_axis=0, tiled=True)
    return grid_RC.swapaxes(0, 1)
