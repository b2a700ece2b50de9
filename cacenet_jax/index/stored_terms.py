"""Bytes of the pair-stage terms of one image, as an index stores them: its arrays in the order of their names."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cacenet_jax.retrieval.compare import HostTerms
from cacenet_jax.retrieval.term_store import named_terms

Layout = list[list[Any]]  # [name, shape, dtype] of each array


def layout_of(like: Any) -> Layout:
    """Return name, shape and dtype of each array of an image's terms; empty without a pair stage.

    A workdir and its export name them alike.
    """
    return [[name, list(x.shape), jnp.dtype(x.dtype).name] for name, x in sorted(named_terms(like).items())]


def pack(terms: HostTerms, row: int) -> bytes:
    """Return the terms of one image as bytes."""
    return b"".join(np.ascontiguousarray(x).tobytes() for _, x in sorted(named_terms(terms[row]).items()))


def unpack(stored: Sequence[bytes], layout: Layout, like: Any) -> HostTerms:
    """Return the terms of images, converted to the dtypes of the network that will compare them.

    Args:
        stored: bytes of each image, from `pack`.
        layout: names, shapes and dtypes of the stored arrays.
        like: shapes and dtypes of one image's terms for the network.
    """
    terms = HostTerms(like, len(stored), len(stored), 2**62, "", "")
    arrays, start = {}, 0
    for name, shape, kind in layout:
        dtype, size = jnp.dtype(kind), math.prod(shape)
        parts = [np.frombuffer(each, dtype, size, start).reshape(shape) for each in stored]
        arrays[name] = np.stack(parts) if parts else np.empty((0, *shape), dtype)
        start += size * dtype.itemsize
    structure = jax.tree.structure(like)
    terms.put(0, jax.tree.unflatten(structure, [arrays[name] for name in named_terms(like)]))
    return terms
