"""The similarity of two images' key-point pairs: visual clue alignment without a graph convolution (table 1, second row).

The cross block of the correspondence attention says which pairs of positions are key-point pairs; the similarity of two
images is the mean cosine of their pairs, each weighed by its affinity, through which w' is trained:

    similarity(u, v) = sum_ij T_ij cos(x_i, x_j) / sum_ij T_ij,      distance = 1 - similarity

Without a single pair the similarity is 0.

Legend: u target image, v contextual image, N and M nodes, D channels, E channels of keys, R images of this device (rows),
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
    """Per-image terms of the key-point similarity; directions are computed where they are used.

    Attributes:
        nodes_ND: the map, one row a position.
        other_keys_NE: keys of the affinities; None for the nodes, the paper's, so that these are kept once.
    """

    nodes_ND: Array
    other_keys_NE: Array | None = None

    @property
    def keys_NE(self) -> Array:
        """Keys of the affinities."""
        return self.nodes_ND if self.other_keys_NE is None else self.other_keys_NE

    @property
    def direction_ND(self) -> Array:
        """Nodes of norm 1, or 0 where a node is 0, in the type of the nodes."""
        return normalise(self.nodes_ND).astype(self.nodes_ND.dtype)


class KeyPointDistance(NamedTuple):
    """Distance of a pair of images, or of each pair of a grid.

    Attributes:
        distance: 1 - similarity, 0 to 2, at least float32.
        positive: fraction of positive affinities, without gradient.
    """

    distance: Array
    positive: Array


def key_points(nodes_ND: Float[AnyArray, "*B N D"], keys_NE: Float[AnyArray, "*B N E"] | None = None) -> KeyPoints:
    """The per-image terms; keys default to the nodes (equation 3)."""
    return KeyPoints(jnp.asarray(nodes_ND), None if keys_NE is None else jnp.asarray(keys_NE))


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
    positive = (cross_NM > 0).mean(dtype=jnp.float32)
    return _distance((cross_NM * cosine_NM).sum(), cross_NM.sum(), positive)


def _distance(weighted: Array, total: Array, positive: Array) -> KeyPointDistance:
    some = total > 0
    return KeyPointDistance(1 - jnp.where(some, weighted / jnp.where(some, total, 1), 0), positive)


def key_point_grid(
    points: KeyPoints, cross_weight_E: Float[AnyArray, "E"], block: int = 0, axis_name: str | None = None
) -> KeyPointDistance:
    """`key_point_distance` of this device's images and all images: two Gram products, a few columns at a time.

    Args:
        points: terms of this device's images, leading axis R.
        cross_weight_E: diagonal of W'.
        block: columns computed at a time, each block again in the backward pass; 0 for all at once.
        axis_name: device axis of the rows, None on one device.

    Returns:
        Leading axes (R, C).
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
    """Visual clue alignment without a graph convolution: the similarity of key-point pairs; see the top of the file."""

    @property
    def title(self) -> str:
        """Name of the stage's correspondences in figures."""
        return "key-point pairs"

    @property
    def learned_blocks(self) -> tuple[Block, ...]:
        """Only the cross block has learned weights."""
        return ("cross",)

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> KeyPoints:
        """Key points of each image, leading axis B."""
        del parts_BN, individual
        return key_points(nodes_BND, self.learned_keys(nodes_BND, train=train))

    def constants(self, individual: Individual) -> Float[Array, "E"]:
        """The diagonal of W', at least float32."""
        del individual
        weight_E = self.learned_weight("cross")
        return weight_E.astype(jnp.promote_types(weight_E.dtype, jnp.float32))

    def distance(self, constants: Float[Array, "E"], u: KeyPoints, v: KeyPoints) -> Float[Array, ""]:
        """Compute `key_point_distance` of two images."""
        return key_point_distance(u, v, constants).distance

    def view(
        self, u: KeyPoints, v: KeyPoints, nodes_u_ND: Array, nodes_v_MD: Array, individual: Individual
    ) -> PairView:
        """The cross block of the correspondence attention."""
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
        """Compute `key_point_grid`: the default form, with each product of all pairs as one."""
        points = self.terms(nodes_RND, parts_RN, individual, train=train)
        rows, num_nodes = nodes_RND.shape[:2]
        block = self.columns_at_once(
            24 * rows * num_nodes**2
        )  # bytes of a column, with the backward pass of two products
        return key_point_grid(points, self.learned_weight("cross"), block, self.grid_axis(rows, train)[0])

    def losses(self, grid: KeyPointDistance, labels: GridLabels, weights: LossWeights) -> dict[str, RowLosses]:
        """Batch-hard triplet loss of the distances."""
        return {"pair_triplet": batch_hard_rows(grid.distance, *labels, weights.margin)}

    def diagnostics(self, grid: KeyPointDistance) -> dict[str, Array]:
        """Fraction of positive affinities across images."""
        return {"positive_cross": grid.positive.mean()}
