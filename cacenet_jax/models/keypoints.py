"""The similarity of two images' key-point pairs: visual clue alignment without a graph convolution (table 1, second row).

The cross block of the correspondence attention says which pairs of positions are key-point pairs; the similarity of two
images is the mean cosine of their pairs, each weighed by its affinity, through which w' is trained:

    similarity(u, v) = sum_ij T_ij cos(x_i, x_j) / sum_ij T_ij,      distance = 1 - similarity

Without a single pair the similarity is 0.

Legend: u target image, v contextual image, N and M nodes, D channels, E channels of keys, B images.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.attention import affinity
from cacenet_jax.models.heads import normalise

AnyArray = Array | ndarray


class KeyPoints(NamedTuple):
    """What the key-point similarity needs of an image.

    Attributes:
        keys_NE: what affinities are computed from; the map itself in the paper.
        direction_ND: nodes of norm 1, or 0 where a node is 0.
    """

    keys_NE: Array
    direction_ND: Array


class KeyPointDistance(NamedTuple):
    """Of a pair of images.

    Attributes:
        distance: 1 - similarity, 0 to 2, at least float32.
        positive: share of positive affinities, without gradient.
    """

    distance: Array
    positive: Array


def key_points(nodes_ND: Float[AnyArray, "*B N D"], keys_NE: Float[AnyArray, "*B N E"] | None = None) -> KeyPoints:
    """The per-image terms; keys default to the nodes (equation 3)."""
    nodes_ND = jnp.asarray(nodes_ND)
    return KeyPoints(nodes_ND if keys_NE is None else jnp.asarray(keys_NE), normalise(nodes_ND).astype(nodes_ND.dtype))


def key_point_distance(u: KeyPoints, v: KeyPoints, cross_weight_E: Float[AnyArray, "E"]) -> KeyPointDistance:
    """1 - mean similarity of the cross-image key-point pairs; symmetric in the two images.

    Args:
        u: terms of one image.
        v: terms of the other.
        cross_weight_E: diagonal of W' (equation 3).

    Source: paper, table 1, "+ Visual Clue Alignment", and section 4.3.1. That pairs are weighed by their affinity is ours:
        a plain mean over positive affinities has no gradient for w'.
    """
    cross_NM = affinity(u.keys_NE, v.keys_NE, cross_weight_E)
    cosine_NM = jnp.einsum("nd,md->nm", u.direction_ND, v.direction_ND, preferred_element_type=cross_NM.dtype)
    total = cross_NM.sum()
    some = total > 0
    similarity = jnp.where(some, (cross_NM * cosine_NM).sum() / jnp.where(some, total, 1), 0)
    return KeyPointDistance(1 - similarity, (cross_NM > 0).mean(dtype=jnp.float32))
