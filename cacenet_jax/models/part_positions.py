"""Body parts of map positions from part labels of pixels, for alignments that use them.

Legend: B images, H x W pixels, h x w positions of a map (N = h w).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

NUM_LABELS = 32  # of body parts, 0 for none


def part_positions(parts_BHW: Shaped[Array, "B H W"], height: int, width: int) -> Int[Array, "B N"]:
    """Reduce the labels of pixels to the body part of each position of a height x width map.

    It is the most frequent body part of the pixels that a position stands for (of equal ones the lowest label); 0 where
    more than three quarters of them belong to nobody: limbs are narrower than a position.

    Args:
        parts_BHW: label of each pixel, 0 for background, below NUM_LABELS.
        height: rows of the map.
        width: columns of the map.
    """
    _, rows, columns = parts_BHW.shape
    in_row_hH = jax.nn.one_hot(jnp.arange(rows) * height // rows, height, axis=0)
    in_column_wW = jax.nn.one_hot(jnp.arange(columns) * width // columns, width, axis=0)
    label_BHW = jnp.round(parts_BHW).astype(jnp.int32)

    def count(label: Array) -> Array:
        shown_BHW = (label_BHW == label).astype(in_row_hH.dtype)
        return jnp.einsum("hH,bHW,wW->bhw", in_row_hH, shown_BHW, in_column_wW)

    # One label at a time: one-hot pixels would take NUM_LABELS times the memory of the labels.
    count_PBhw = jax.lax.map(count, jnp.arange(NUM_LABELS))
    nobody_Bhw = 4 * count_PBhw[0] > 3 * count_PBhw.sum(axis=0)
    part_Bhw = jnp.where(nobody_Bhw, 0, 1 + count_PBhw[1:].argmax(axis=0))
    return part_Bhw.reshape(part_Bhw.shape[0], -1)
