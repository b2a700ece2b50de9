"""Training batch passed from the host to the device."""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """Training batch of R images.

    Attributes:
        images: uint8, shape (R, H, W, C); three colour channels, then an optional channel of part labels.
        labels: class of each image, 0 .. I-1, shape (R,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
