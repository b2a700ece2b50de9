"""The interface of a pair stage: all that the network computes from two images together.

A `CACENet` is a backbone, an individual head and one pair stage. A stage is used in four ways:

    training    grid -> losses, diagnostics                  every ordered pair of a batch
    retrieval   terms -> store (once an image), constants (once a network), distances (one image and many)
    figures     terms -> view                                two images
    export      store and distances, as jax.export artefacts

A stage must define `terms` and one of `distance` and `distances`; the rest has defaults that follow from these. Its
parameters stand beside those of the backbone and the individual head, not in a folder of their own (docs/checkpoints.md),
so their names must be the stage's own.

Legend: B images, R rows and C columns of a grid of pairs (target u, context v), N and M nodes (positions) of a map,
D channels, F embedding size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, batch_hard_rows
from cacenet_jax.models.heads import EmbeddingHead, normalise
from cacenet_jax.models.pair_stages.grids import distance_grid


class Individual(NamedTuple):
    """The individual branch of the network, for stages that use it.

    Attributes:
        head: the individual head.
        exponent: of the generalised-mean pooling, None for the mean.
    """

    head: EmbeddingHead
    exponent: Array | None


class PairView(NamedTuple):
    """Two images as a stage sees them together, for figures.

    Attributes:
        correspondence_NM: strength of the connection of every position of u with every position of v, not negative.
        norm_N: L2 norm of each position of the conditional map of u given v; None for a stage without such a map.
    """

    correspondence_NM: Array
    norm_N: Array | None


class PairStage(nn.Module, kw_only=True):
    """Base class of all pair stages.

    The fields below come from the network. A stage adds its own, each with a default: `config.model.pair` sets them.

    Attributes:
        channels: D, channels of a map.
        embed_dim: F.
        num_identities: classes of the training set.
        relu: apply a ReLU between an embedding and its classifier.
        dropout: dropout rate in front of classifiers.
        memory_mib: memory of the training grid's temporaries on a device; past it the grid is computed in blocks, each
            again in the backward pass.
        dtype: compute type; parameters, degrees, embeddings and distances are at least float32.
        axis_name: device axis for collectives in training, None on one device.
    """

    channels: int
    embed_dim: int
    num_identities: int
    relu: bool = False
    dropout: float = 0.0
    memory_mib: float = 1024.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def validate(self) -> None:
        """Check the values of the fields, of a stage that need not be bound.

        Raises:
            UserError: names the field, its value and what is expected.
        """

    # -- Properties that the rest of the program reads ------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Name of the stage's correspondences in figures."""
        return "correspondences"

    @property
    def image_channels(self) -> int:
        """Channels of an image: three colours and, for a stage that needs it, a label of each pixel's body part."""
        return 3

    @property
    def poolings(self) -> frozenset[str]:
        """Poolings of the individual head that the stage can work beside."""
        return frozenset({"mean", "gem"})

    @property
    def supports_frozen(self) -> bool:
        """True if the stage can be trained on a network that stays as it is (`config.model.frozen`)."""
        return True

    @property
    def scoring_fields(self) -> frozenset[str]:
        """Names of fields that change no parameter's meaning, so that an evaluation may choose them anew."""
        return frozenset()

    @property
    def shares_encoder(self) -> bool:
        """True if the individual head also encodes pairs and so has a second classifier."""
        return False

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Names of parameters that learn at `config.optim.attention_scale` and without weight decay."""
        return frozenset()

    @property
    def selection_terms(self) -> frozenset[str]:
        """Names of stored terms that hold a top-K selection, where rounding may choose another of two equal candidates."""
        return frozenset()

    # -- One image ------------------------------------------------------------------------------------------------------

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Any:
        """Compute the per-image terms, a tree of arrays with leading axis B.

        Args:
            nodes_BND: feature maps, one row a position.
            parts_BN: body part of each position, None if the images carry no labels.
            individual: the individual branch.
            train: batch statistics instead of running ones.
        """
        raise NotImplementedError

    def store(self, constants: Any, terms: Any, dtype: Any) -> Any:
        """Convert terms, at least float32, to the form that retrieval keeps of an image; floats in the storage type."""
        del constants
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, terms)

    # -- Two images -----------------------------------------------------------------------------------------------------

    def constants(self, individual: Individual) -> Any:
        """Compute a tree of arrays that the distance of every pair needs, from parameters and running statistics."""
        del individual
        return ()

    def distance(self, constants: Any, u: Any, v: Any) -> Float[Array, ""]:
        """Compute the distance of two images from their stored terms (without leading axis).

        A pure function of its arguments, symmetric in the two images up to rounding, at least float32.
        """
        return self.distances(constants, u, jax.tree.map(lambda x: x[None], v))[0]

    def distances(self, constants: Any, u: Any, v: Any) -> Float[Array, "C"]:
        """Compute the distances of one image and C others, whose stored terms have the leading axis C."""
        return jax.vmap(lambda v: self.distance(constants, u, v))(v)

    def view(
        self,
        u: Any,
        v: Any,
        nodes_u_ND: Float[Array, "N D"],
        nodes_v_MD: Float[Array, "M D"],
        individual: Individual,
    ) -> PairView:
        """Return what figures show of two images, from their terms and maps; by default the cosines of their nodes."""
        del u, v, individual
        return PairView(nn.relu(normalise(nodes_u_ND) @ normalise(nodes_v_MD).T), None)

    # -- A batch --------------------------------------------------------------------------------------------------------

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Any:
        """Compute what the losses need of all pairs; by default the distances, (R, C).

        Args:
            nodes_RND: maps of this device's images, the rows of the grid.
            parts_RN: body part of each position.
            individual: the individual branch.
            train: batch statistics and updates; the columns are then the images of all devices along `axis_name`.
        """
        terms = self.terms(nodes_RND, parts_RN, individual, train=train)
        constants = self.constants(individual)
        rows, num_nodes = nodes_RND.shape[:2]
        block = self.columns_at_once(16 * rows * num_nodes * (num_nodes + self.channels))
        pair = lambda u, v: self.distance(constants, u, v)
        return distance_grid(pair, terms, block, self.grid_axis(rows, train)[0])

    def losses(self, grid: Any, labels: GridLabels, weights: LossWeights) -> Mapping[str, RowLosses]:
        """Compute the stage's loss terms of each row; by default the batch-hard triplet loss of its distances.

        Args:
            grid: from `grid`.
            labels: identities of rows and columns.
            weights: constants of the losses. A term is weighted by the field of its own name, and by 1 without one.
        """
        return {"pair_triplet": batch_hard_rows(grid, *labels, weights.margin)}

    def diagnostics(self, grid: Any) -> Mapping[str, Array]:
        """Return scalars of a training grid that show the health of the stage; logged, without gradient."""
        del grid
        return {}

    # -- Helpers for stages ---------------------------------------------------------------------------------------------

    def grid_axis(self, rows: int, train: bool) -> tuple[str | None, int]:
        """Return the device axis of the grid's rows, None if they are all of its columns, and the number of columns."""
        if not train or self.axis_name is None or self.is_initializing():
            return None, rows
        columns = rows * jax.lax.axis_size(self.axis_name)
        return (self.axis_name if columns > rows else None), columns

    def columns_at_once(self, column_bytes: int, share: float = 1.0) -> int:
        """Return how many columns of a grid fit a share of the memory budget, at least one."""
        return max(int(share * self.memory_mib * 2**20) // column_bytes, 1)
