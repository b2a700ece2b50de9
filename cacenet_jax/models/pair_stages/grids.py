"""Pair grids from per-image terms, across devices and in bounded memory.

Legend: R local images (rows), C images of all devices (columns).
"""

from collections.abc import Callable
from typing import Any

import jax

from cacenet_jax.distributed.collectives import all_gather


def distance_grid(pair: Callable[[Any, Any], Any], rows: Any, block: int = 0, axis_name: str | None = None) -> Any:
    """Apply a function to every pair of a local image (row) and an image of any device (column).

    Args:
        pair: function from the terms of u and v to a small pytree of scalars.
        rows: terms of the local images, leading axis R.
        block: number of columns per block, or 0 for a single block. Blocks are recomputed in the backward pass.
        axis_name: device axis of the rows, or None on a single device.

    Returns:
        Values of `pair` with leading axes (R, C).
    """
    columns = all_gather(rows, axis_name)

    def column(v: Any) -> Any:
        return jax.vmap(lambda u: pair(u, v))(rows)

    num_columns = jax.tree.leaves(columns)[0].shape[0]
    if block and block < num_columns:
        blocks = jax.lax.map(jax.checkpoint(column), columns, batch_size=block)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), blocks)
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(rows, columns)


def map_grid(pair: Callable[[Any, Any], Any], rows: Any, columns: Any, at_once: int) -> Any:
    """Apply a function to every pair of a grid, in blocks that are recomputed in the backward pass.

    Args:
        pair: function from the terms of u and v to a small pytree.
        rows: terms of the target images, leading axis R.
        columns: terms of the contextual images, leading axis C.
        at_once: number of pairs computed at a time, limited by the memory for the temporaries of `pair`. Values below 1
            count as 1.

    Returns:
        Values of `pair` with leading axes (R, C).
    """
    num_rows, num_columns = (len(jax.tree.leaves(tree)[0]) for tree in (rows, columns))

    def row(u: Any) -> Any:
        return jax.vmap(lambda v: pair(u, v))(columns)

    def row_in_blocks(u: Any) -> Any:
        return jax.lax.map(jax.checkpoint(lambda v: pair(u, v)), columns, batch_size=max(at_once, 1))

    if at_once >= num_rows * num_columns:
        return jax.vmap(row)(rows)
    if at_once >= num_columns:
        return jax.lax.map(jax.checkpoint(row), rows, batch_size=at_once // num_columns)
    return jax.lax.map(row_in_blocks, rows)
