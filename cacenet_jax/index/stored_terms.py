"""Bytes of the pair-stage terms of one image, as an index stores them: its arrays, one after another."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cacenet_jax.retrieval.compare import HostTerms

Layout = list[list[Any]]  # [shape, dtype] of each array


def layout_of(like: Any) -> Layout:
    """Return the shape and dtype of each array of an image's terms; empty without a pair stage."""
    return [[list(x.shape), jnp.dtype(x.dtype).name] for x in jax.tree.leaves(like)]


def pack(terms: HostTerms, row: int) -> bytes:
    """Return the terms of one image as bytes."""
    return b"".join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(terms[row]))


def unpack(stored: Sequence[bytes], layout: Layout, like: Any) -> HostTerms:
    """Return the terms of images, converted to the dtypes of the network that will compare them.

    Args:
        stored: bytes of each image, from `pack`.
        layout: shapes and dtypes of the stored arrays.
        like: shapes and dtypes of one image's terms for the network.
    """
    terms = HostTerms(like, len(stored), len(stored), 2**62, "", "")
    leaves, start = [], 0
    for shape, name in layout:
        dtype = jnp.dtype(name)
        size = math.prod(shape) * dtype.itemsize
        parts = [np.frombuffer(each, dtype, math.prod(shape), start).reshape(shape) for each in stored]
        leaves.append(np.stack(parts) if parts else np.empty((0, *shape), dtype))
        start += size
    terms.put(0, leaves)
    return terms
