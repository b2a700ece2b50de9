"""Visual clue alignment: the mean similarity of the regions of two images that match (section 3.3; table 1, second row).

A region is described by what it adds to the individual embedding: f(I) is linear in the nodes of the map up to its batch
norm, so the encoder's 1x1 convolution applies to single nodes too. As in equation 4 a ReLU selects the pairs of regions:

    W_ij = ReLU(c_ij - tau),   a_i = sum_j W_ij c_ij / sum_j W_ij,   clue(u, v) = (sum_i s_i a_i + sum_j s_j a_j) / 2

with c_ij the cosine of region i of u and region j of v, and s the salience of a region, its share of the norms of its
image. A region that matches nothing adds 0. The measure is symmetric in u and v.

Legend: u target image, v contextual image, N and M nodes, F embedding size, R x C a grid of pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.heads import normalise

AnyArray = Array | ndarray


class Clues(NamedTuple):
    """The regions of an image.

    Attributes:
        direction_NF: embeddings of the regions, each of norm 1, or 0 where a region is 0.
        salience_N: share of each region in the sum of their norms, float32.
    """

    direction_NF: Array
    salience_N: Array


def image_clues(embedding_NF: Float[AnyArray, "*B N F"]) -> Clues:
    """Directions and salience of embedded regions; computed once per image."""
    embedding_NF = jnp.asarray(embedding_NF)
    wide = embedding_NF.astype(jnp.promote_types(embedding_NF.dtype, jnp.float32))
    square_N = jnp.sum(wide * wide, axis=-1)
    positive_N = square_N > 0
    norm_N = jnp.where(positive_N, jnp.sqrt(jnp.where(positive_N, square_N, 1)), 0)
    total = norm_N.sum(axis=-1, keepdims=True)
    salience_N = norm_N / jnp.where(total > 0, total, 1)
    return Clues(normalise(wide).astype(embedding_NF.dtype), salience_N)


def clue_similarity(u: Clues, v: Clues, threshold: Float[AnyArray, ""] | float) -> Float[Array, ""]:
    """Mean similarity of the matching regions of two images, -1 to 1 (for a threshold of 0 or more: 0 to 1).

    Args:
        u: regions of one image.
        v: regions of the other.
        threshold: tau, the cosine above which two regions match.

    Source: paper, section 3.3 and table 1 ("+ Visual Clue Alignment"), which gives no formula; this is our choice.
    """
    wide = jnp.promote_types(u.direction_NF.dtype, jnp.float32)
    cosine_NM = jnp.einsum("nf,mf->nm", u.direction_NF, v.direction_NF, preferred_element_type=wide)
    weight_NM = jax.nn.relu(cosine_NM - threshold)

    def aligned(axis: int) -> Array:
        total = weight_NM.sum(axis=axis)
        found = total > 0
        return jnp.where(found, (weight_NM * cosine_NM).sum(axis=axis) / jnp.where(found, total, 1), 0)

    return (u.salience_N @ aligned(1) + v.salience_N @ aligned(0)) / 2


def clue_grid(rows: Clues, columns: Clues, threshold: Array, block: int = 0) -> Float[Array, "R C"]:
    """`clue_similarity` of every row image and every column image; `block` as in pairs.neighbour_grid."""

    def column(v: Clues) -> Array:
        return jax.vmap(lambda u: clue_similarity(u, v, threshold))(rows)

    num_columns = columns.salience_N.shape[0]
    if block and block < num_columns:
        return jax.lax.map(jax.checkpoint(column), columns, batch_size=block).T
    pair = lambda u, v: clue_similarity(u, v, threshold)
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(rows, columns)
