"""Conversion of per-pixel part labels to one body part per map position, for part-based alignments.

Legend: B images, H x W pixels, h x w positions of a map (N = h w).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

NUM_LABELS = 32  # body-part labels; 0 is background


def part_positions(parts_BHW: Shaped[Array, "B H W"], height: int, width: int) -> Int[Array, "B N"]:
    """Reduce pixel labels to one body part for each position of a height x width map.

    Each position takes the most frequent body part among the pixels it covers; ties go to the lowest label. A
    position is background (0) only if more than three quarters of its pixels are background, because limbs are narrow.

    Args:
        parts_BHW: pixel labels, less than NUM_LABELS; 0 is background.
        height: number of rows of the map.
        width: number of columns of the map.
    """
    _, rows, columns = parts_BHW.shape
    in_row_hH = jax.nn.one_hot(jnp.arange(rows) * height // rows, height, axis=0)
    in_column_wW = jax.nn.one_hot(jnp.arange(columns) * width // columns, width, axis=0)
    label_BHW = jnp.round(parts_BHW).astype(jnp.int32)

    def count(label: Array) -> Array:
        shown_BHW = (label_BHW == label).astype(in_row_hH.dtype)
        return jnp.einsum("hH,bHW,wW->bhw", in_row_hH, shown_BHW, in_column_wW)

    # Process one label at a time: a one-hot encoding would take NUM_LABELS times the memory of the labels.
    count_PBhw = jax.lax.map(count, jnp.arange(NUM_LABELS))
    nobody_Bhw = 4 * count_PBhw[0] > 3 * count_PBhw.sum(axis=0)
    part_Bhw = jnp.where(nobody_Bhw, 0, 1 + count_PBhw[1:].argmax(axis=0))
    return part_Bhw.reshape(part_Bhw.shape[0], -1)
