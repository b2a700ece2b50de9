"""Key-point similarity: visual clue alignment without a graph convolution (table 1, second row).

The cross block of the correspondence attention determines which pairs of positions are key-point pairs. The similarity
of two images is the mean cosine similarity of these pairs, weighted by affinity so that w' receives a gradient:

    similarity(u, v) = sum_ij T_ij cos(x_i, x_j) / sum_ij T_ij,      distance = 1 - similarity

If there are no key-point pairs, the similarity is 0.

Legend: u target image, v contextual image, N and M nodes, D channels, E channels of keys, R local images (rows),
C images of all devices (columns).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from cacenet_jax.distributed.collectives import all_gather
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, batch_hard_rows
from cacenet_jax.models.attention import affinity
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.affinities import AffinityStage, Block
from cacenet_jax.models.pair_stages.base import Individual, PairView

AnyArray = Array | ndarray


class KeyPoints(NamedTuple):
    """Per-image terms of the key-point similarity; normalised nodes are computed on demand.

    Attributes:
        nodes_ND: feature map, one row per position.
        other_keys_NE: affinity keys, or None if the nodes themselves are the keys, as in the paper.
    """

    nodes_ND: Array
    other_keys_NE: Array | None = None

    @property
    def keys_NE(self) -> Array:
        """Affinity keys."""
        return self.nodes_ND if self.other_keys_NE is None else self.other_keys_NE

    @property
    def direction_ND(self) -> Array:
        """Nodes normalised to norm 1, in the dtype of the nodes; zero nodes remain zero."""
        return normalise(self.nodes_ND).astype(self.nodes_ND.dtype)


class KeyPointDistance(NamedTuple):
    """Distance between two images, or the distances of a grid of pairs.

    Attributes:
        distance: 1 - similarity, in [0, 2], in at least float32.
        positive: fraction of positive affinities, without gradient.
    """

    distance: Array
    positive: Array


def key_points(nodes_ND: Float[AnyArray, "*B N D"], keys_NE: Float[AnyArray, "*B N E"] | None = None) -> KeyPoints:
    """Return the per-image terms; keys default to the nodes (equation 3)."""
    return KeyPoints(jnp.asarray(nodes_ND), None if keys_NE is None else jnp.asarray(keys_NE))


def key_point_distance(u: KeyPoints, v: KeyPoints, cross_weight_E: Float[AnyArray, "E"]) -> KeyPointDistance:
    """Compute one minus the affinity-weighted mean similarity of the key-point pairs of two images.

    The distance is symmetric in the two images.

    Args:
        u: terms of one image.
        v: terms of the other image.
        cross_weight_E: diagonal of W' (equation 3).

    Source: paper, table 1, "+ Visual Clue Alignment", and section 4.3.1. The affinity weighting is ours: a plain mean
        over positive affinities has no gradient with respect to w'.
    """
    cross_NM = affinity(u.keys_NE, v.keys_NE, cross_weight_E)
    cosine_NM = jnp.einsum("nd,md->nm", u.direction_ND, v.direction_ND, preferred_element_type=cross_NM.dtype)
    positive = (cross_NM > 0).mean(dtype=jnp.float32)
    return _distance((cross_NM * cosine_NM).sum(), cross_NM.sum(), positive)


def _distance(weighted: Array, total: Array, positive: Array) -> KeyPointDistance:
    some = total > 0
    return KeyPointDistance(1 - jnp.where(some, weighted / jnp.where(some, total, 1), 0), positive)


def key_point_grid(
    points: KeyPoints, cross_weight_E: Float[AnyArray, "E"], block: int = 0, axis_name: str | None = None
) -> KeyPointDistance:
    """Compute `key_point_distance` between local images and all images.

    Two Gram products are computed for each block of columns.

    Args:
        points: terms of the local images, leading axis R.
        cross_weight_E: diagonal of W'.
        block: number of columns per block, or 0 for a single block. Blocks are recomputed in the backward pass.
        axis_name: device axis of the rows, or None on a single device.

    Returns:
        Distances and fractions of positive affinities, shape (R, C) each.
    """
    num_rows, nodes, _ = points.nodes_ND.shape
    all_points = all_gather(points, axis_name)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    direction_RND = points.direction_ND

    def columns(some: KeyPoints) -> KeyPointDistance:
        wide = (num_rows, nodes, -1, nodes)
        cross_RNCM = affinity(flat(points.keys_NE), flat(some.keys_NE), cross_weight_E).reshape(wide)
        cosine_RNCM = jnp.einsum(
            "nd,md->nm", flat(direction_RND), flat(some.direction_ND), preferred_element_type=cross_RNCM.dtype
        ).reshape(wide)
        weighted_RC, total_RC = (x.sum(axis=(1, 3)) for x in (cross_RNCM * cosine_RNCM, cross_RNCM))
        positive_RC = (cross_RNCM > 0).mean(axis=(1, 3), dtype=jnp.float32)
        return _distance(weighted_RC, total_RC, positive_RC)

    num_columns = len(all_points.nodes_ND)
    size = max(
        (d for d in range(1, num_columns + 1) if num_columns % d == 0 and d <= (block or num_columns)), default=1
    )
    if size == num_columns:
        return columns(all_points)
    cut = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), all_points)
    blocks = jax.lax.map(jax.checkpoint(columns), cut)
    return jax.tree.map(lambda x_TRC: x_TRC.swapaxes(0, 1).reshape(num_rows, num_columns), blocks)


class KeyPointStage(AffinityStage, kw_only=True):
    """Visual clue alignment without a graph convolution; see the module docstring."""

    @property
    def title(self) -> str:
        """Title of the correspondences in figures."""
        return "key-point pairs"

    @property
    def learned_blocks(self) -> tuple[Block, ...]:
        """Blocks with learned weights: only the cross block."""
        return ("cross",)

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> KeyPoints:
        """Compute the key-point terms of each image, with leading axis B."""
        del parts_BN, individual
        return key_points(nodes_BND, self.learned_keys(nodes_BND, train=train))

    def constants(self, individual: Individual) -> Float[Array, "E"]:
        """Return the diagonal of W', at least float32."""
        del individual
        weight_E = self.learned_weight("cross")
        return weight_E.astype(jnp.promote_types(weight_E.dtype, jnp.float32))

    def distance(self, constants: Float[Array, "E"], u: KeyPoints, v: KeyPoints) -> Float[Array, ""]:
        """Compute `key_point_distance` between two images."""
        return key_point_distance(u, v, constants).distance

    def view(
        self, u: KeyPoints, v: KeyPoints, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual
    ) -> PairView:
        """Return the cross block of the correspondence attention."""
        del nodes_u_ND, nodes_v_MD
        return PairView(affinity(u.keys_NE, v.keys_NE, self.constants(individual)), None)

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> KeyPointDistance:
        """Compute `key_point_grid`, which batches the per-pair products of the default implementation."""
        points = self.terms(nodes_RND, parts_RN, individual, train=train)
        rows, num_nodes = nodes_RND.shape[:2]
        block = self.columns_at_once(
            24 * rows * num_nodes**2
        )  # bytes per column, including the backward pass of both products
        return key_point_grid(points, self.learned_weight("cross"), block, self.grid_axis(rows, train)[0])

    def losses(self, grid: KeyPointDistance, labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Compute the batch-hard triplet loss of the distances."""
        return {"pair_triplet": batch_hard_rows(grid.distance, *labels, weights.margin)}

    def diagnostics(self, grid: KeyPointDistance) -> dict[str, Array]:
        """Return the fraction of positive affinities across images."""
        return {"positive_cross": grid.positive.mean()}
