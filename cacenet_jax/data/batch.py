"""Training batch, as passed from the host to the device."""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        images: uint8 (R, H, W, C): three colours, then optional part labels.
        labels: class 0 .. I-1 of each image's identity, (R,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
