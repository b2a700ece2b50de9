"""Distances between two L2-normalised embeddings, chosen by name: `config.model.pair.embedding_distance`.

A distance d is half a squared difference. Retrieval ranks by d; the triplet loss trains its metric form, sqrt(2 d). To try
another distance, write a function of two arrays of embeddings and register it, `DISTANCES.register("name", function)`, or
give its place, `config.model.pair.embedding_distance=MODULE:FUNCTION`.

Legend: F embedding size.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.models.registry import Registry

EmbeddingDistance = Callable[[Array, Array], Array]
DISTANCES: Registry[EmbeddingDistance] = Registry(
    "config.model.pair.embedding_distance", "function", callable, "a function of two arrays of embeddings"
)


def cosine(left: Float[Array, "*batch F"], right: Float[Array, "*batch F"]) -> Float[Array, "*batch"]:
    """Compute 1 - cos(left, right) as |left - right|^2 / 2, which is exactly 0 for equal embeddings.

    Args:
        left: embeddings of norm 1.
        right: embeddings that they are compared with, one by one.

    Returns:
        Values from 0 to 2. The paper names no distance, this one is our choice (docs/paper_notes.md).
    """
    return jnp.sum((left - right) ** 2, axis=-1) / 2


DISTANCES.register("cosine", cosine)
