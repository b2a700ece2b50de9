"""Visual clue alignment: the difference between aligned regions of two images (section 3.3; table 1, second row).

A region is described by its contribution to the individual embedding. In inference mode, f(I) is affine in the nodes of
the map, so the encoder can also be applied to single nodes. Each region is aligned with the most similar region of the
other image, and the worst matches dominate the distance:

    a_i = max_j c_ij,   clue(u | v) = ( sum_i s_i (1 - a_i)^p )^(1/p),   clue(u, v) = (clue(u | v) + clue(v | u)) / 2

where c_ij is the cosine similarity of region i of u and region j of v, s_i is the salience of region i (its share of
the sum of squared norms in its image) and p = 4. With a plain mean (p = 1), the many regions that look-alikes share
would outweigh the one that distinguishes them; see docs/results.md for numbers.

Legend: u target image, v contextual image, N and M nodes, F embedding size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.heads import normalise

AnyArray = Array | ndarray
POWER = 4


class Clues(NamedTuple):
    """Regions of an image.

    Attributes:
        direction_NF: region embeddings scaled to unit norm; zero embeddings remain zero.
        salience_N: each region's fraction of the total squared norm, in at least float32.
    """

    direction_NF: Array
    salience_N: Array


def image_clues(embedding_NF: Float[AnyArray, "*B N F"]) -> Clues:
    """Compute the directions and salience of embedded regions."""
    embedding_NF = jnp.asarray(embedding_NF)
    wide = embedding_NF.astype(jnp.promote_types(embedding_NF.dtype, jnp.float32))
    square_N = jnp.sum(wide * wide, axis=-1)
    total = square_N.sum(axis=-1, keepdims=True)
    salience_N = square_N / jnp.where(total > 0, total, 1)
    return Clues(normalise(wide).astype(embedding_NF.dtype), salience_N)


def _power_mean(value_N: Array, weight_N: Array) -> Array:
    """Compute (sum w x^p)^(1/p), with zero gradient where the result is 0."""
    total = weight_N @ value_N**POWER
    positive = total > 0
    return jnp.where(positive, jnp.where(positive, total, 1) ** (1 / POWER), 0)


def clue_distance(u: Clues, v: Clues) -> Float[Array, ""]:
    """Compute the difference between the aligned regions of two images.

    The distance is symmetric and lies between 0 (identical images, up to rounding) and 2.

    Args:
        u: regions of one image.
        v: regions of the other.

    Source: paper, section 3.3 (each pixel is aligned with the most similar one) and table 1, "+ Visual Clue
        Alignment" (the mean similarity of aligned pairs). Salience, symmetry and the power are ours.
    """
    wide = jnp.promote_types(u.direction_NF.dtype, jnp.float32)
    cosine_NM = jnp.einsum("nf,mf->nm", u.direction_NF, v.direction_NF, preferred_element_type=wide)
    # Rounding can push a cosine above 1; 1 - cosine would then be negative and its even power positive.
    apart_N = jax.nn.relu(1 - cosine_NM.max(axis=1))
    apart_M = jax.nn.relu(1 - cosine_NM.max(axis=0))
    return (_power_mean(apart_N, u.salience_N) + _power_mean(apart_M, v.salience_N)) / 2
