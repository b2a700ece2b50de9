"""What the host hands to the device."""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        images: uint8, (R, H, W, 3).
        labels: class of the identity, 0 .. I-1, (R,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
