"""Distances between two L2-normalised embeddings, selected by `config.model.pair.embedding_distance`.

A distance d is on the scale of half the squared Euclidean distance. Retrieval ranks by d; the triplet loss uses the
metric sqrt(2 d). To use another distance, write a function of two arrays of embeddings and either register it with
`DISTANCES.register("name", function)` or set `config.model.pair.embedding_distance=MODULE:FUNCTION`.

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
        left: embeddings of unit norm.
        right: embeddings of unit norm, compared with `left` elementwise along the batch axes.

    Returns:
        Distances from 0 to 2. The paper does not specify a distance; this is our choice (docs/paper_notes.md).
    """
    return jnp.sum((left - right) ** 2, axis=-1) / 2


DISTANCES.register("cosine", cosine)
