"""Collectives that are no-ops without a device axis, for functions that run on one device or on many.

Legend: R rows of a grid on this device, C columns on all devices.
"""

from typing import TypeVar

import jax

Tree = TypeVar("Tree")


def all_gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Concatenate the shares of all devices along the leading axis; `x` itself without a device axis."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def pmean(tree: Tree, axis_name: str | None) -> Tree:
    """Average a tree of arrays over devices; the tree itself without a device axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def transpose_grid(grid_RC: jax.Array, axis_name: str | None) -> jax.Array:
    """Transpose a grid of pairs whose rows are split over devices: value (u, v) moves to (v, u).

    Args:
        grid_RC: this device's rows and all columns, (R, C, ...), R the images of one device.
        axis_name: device axis, None on one device.

    Returns:
        (R, C, ...): for this device's images u and all images v, the value of (v, u).
    """
    if axis_name is not None:
        grid_RC = jax.lax.all_to_all(grid_RC, axis_name, split_axis=1, concat_axis=0, tiled=True)
    return grid_RC.swapaxes(0, 1)
