"""Training batch passed from the host to the device."""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """Training batch of R images.

    Attributes:
        images: uint8, shape (R, H, W, C); three colour channels, then an optional channel of part labels.
        labels: training class of each image, counted from 0, shape (R,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
