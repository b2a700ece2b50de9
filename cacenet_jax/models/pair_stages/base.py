"""Interface of pair stages, the part of the network that operates on pairs of images.

A `CACENet` consists of a backbone, an individual head and one pair stage. A stage is used in four ways:

    training    grid -> losses, diagnostics                  every ordered pair of a batch
    retrieval   terms -> store (once per image), constants (once per network), distances (one image to many)
    figures     terms -> view                                two images
    export      store and distances, as jax.export artefacts

A stage must define `terms` and either `distance` or `distances`. The other methods have defaults based on these. Stage
parameters share one scope with those of the backbone and the individual head (docs/checkpoints.md), so their names must
not clash.

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
    """Individual branch of the network, for stages that use it.

    Attributes:
        head: individual head.
        exponent: exponent of the generalised-mean pooling, or None for mean pooling.
    """

    head: EmbeddingHead
    exponent: Array | None


class PairView(NamedTuple):
    """Visualisation data for a pair of images.

    Attributes:
        correspondence_NM: non-negative connection strength between each position of u and each position of v.
        norm_N: L2 norm of each position of the conditional map of u given v, or None if there is no such map.
    """

    correspondence_NM: Array
    norm_N: Array | None


class Alarm(NamedTuple):
    """A value of a training metric that shows a dead part of the network.

    Attributes:
        metric: name of the metric, a diagnostic of the stage.
        meaning: what the value means, as a clause.
        remedy: what to try, as an imperative.
        at_most: largest value that raises the alarm.
    """

    metric: str
    meaning: str
    remedy: str
    at_most: float = 0.0


# Alarms of graphs of two images, whose affinities are learned.
_REMEDY = "lower config.optim.learning_rate, or start from other weights"
UNCONNECTED = {
    "intra": Alarm("positive_intra", "no two positions of an image are connected", _REMEDY),
    "cross": Alarm(
        "positive_cross", "no position is connected to one of another image, so a pair adds nothing", _REMEDY
    ),
}
ISOLATED = Alarm("degree", "every node is isolated, so a conditional embedding depends on one image alone", _REMEDY)


class PairStage(nn.Module, kw_only=True):
    """Base class of all pair stages.

    The network sets the fields below. Subclasses add their own fields, which need defaults and are set by
    `config.model.pair`.

    Attributes:
        channels: D, number of channels of a feature map.
        embed_dim: F, embedding size.
        num_identities: number of training identities.
        relu: apply a ReLU between an embedding and its classifier.
        dropout: dropout rate before classifiers.
        memory_mib: per-device memory budget in MiB for temporaries of the training grid. A larger grid is computed in
            blocks that are recomputed in the backward pass.
        dtype: compute dtype; parameters, degrees, embeddings and distances are in at least float32.
        axis_name: device axis for collectives in training, or None on a single device.
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
        """Validate the field values; the module need not be bound.

        Raises:
            UserError: if a value is invalid. The message names the field, its value and the expected values.
        """

    # -- Public properties ---------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Title of the correspondences in figures."""
        return "correspondences"

    @property
    def image_channels(self) -> int:
        """Number of image channels: three for colour, plus a body-part label channel if the stage needs one."""
        return 3

    @property
    def poolings(self) -> frozenset[str]:
        """Supported poolings of the individual head."""
        return frozenset({"mean", "gem"})

    @property
    def supports_frozen(self) -> bool:
        """True if the stage can be trained on top of a frozen network (`config.model.frozen`)."""
        return True

    @property
    def scoring_fields(self) -> frozenset[str]:
        """Names of fields that an evaluation may override because they do not change the meaning of any parameter."""
        return frozenset()

    @property
    def shares_encoder(self) -> bool:
        """True if the individual head also encodes pairs and therefore has a second classifier."""
        return False

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Names of parameters without weight decay whose learning rate is scaled by `config.optim.attention_scale`."""
        return frozenset()

    @property
    def selection_terms(self) -> frozenset[str]:
        """Names of stored terms that depend on a top-K selection, in which rounding may break ties differently."""
        return frozenset()

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Values of `diagnostics` that show a dead stage. Each is reported once in a run, with its step."""
        return ()

    # -- One image -----------------------------------------------------------------------------------------------------

    def terms(
        self,
        nodes_BND: Float[Array, "B N D"],
        parts_BN: Int[Array, "B N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Any:
        """Compute the per-image terms, a pytree of arrays with leading axis B.

        Args:
            nodes_BND: feature maps, one row per position.
            parts_BN: body part of each position, or None if the images have no part labels.
            individual: individual branch of the network.
            train: use batch statistics instead of running statistics.
        """
        raise NotImplementedError

    def store(self, constants: Any, terms: Any, dtype: Any) -> Any:
        """Convert per-image terms in at least float32 to their storage form; by default, floats are cast to `dtype`."""
        del constants
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, terms)

    # -- Two images ----------------------------------------------------------------------------------------------------

    def constants(self, individual: Individual) -> Any:
        """Compute the constants shared by all pair distances (a pytree) from parameters and running statistics."""
        del individual
        return ()

    def distance(self, constants: Any, u: Any, v: Any) -> Float[Array, ""]:
        """Compute the distance between two images from their stored terms (without a leading axis).

        This is a pure function of its arguments. The result is in at least float32 and symmetric in the two images up to
        rounding.
        """
        return self.distances(constants, u, jax.tree.map(lambda x: x[None], v))[0]

    def distances(self, constants: Any, u: Any, v: Any) -> Float[Array, "C"]:
        """Compute the distances from one image to C others, whose stored terms have leading axis C."""
        return jax.vmap(lambda v: self.distance(constants, u, v))(v)

    def view(
        self,
        u: Any,
        v: Any,
        nodes_u_ND: Float[Array, "N D"],
        nodes_v_MD: Float[Array, "M D"],
        individual: Individual,
    ) -> PairView:
        """Return visualisation data for a pair; by default the cosine similarities of nodes, clipped at zero."""
        del u, v, individual
        return PairView(nn.relu(normalise(nodes_u_ND) @ normalise(nodes_v_MD).T), None)

    # -- A batch -------------------------------------------------------------------------------------------------------

    def grid(
        self,
        nodes_RND: Float[Array, "R N D"],
        parts_RN: Int[Array, "R N"] | None,
        individual: Individual,
        *,
        train: bool,
    ) -> Any:
        """Compute the inputs of the losses for all pairs; by default the distances, shape (R, C).

        Args:
            nodes_RND: feature maps of the local images, the rows of the grid.
            parts_RN: body part of each position, or None if the images have no part labels.
            individual: individual branch of the network.
            train: use batch statistics and update the running ones. The columns of the grid are then the images of all
                devices along `axis_name`.
        """
        terms = self.terms(nodes_RND, parts_RN, individual, train=train)
        constants = self.constants(individual)
        rows, num_nodes = nodes_RND.shape[:2]
        block = self.columns_at_once(16 * rows * num_nodes * (num_nodes + self.channels))
        pair = lambda u, v: self.distance(constants, u, v)
        return distance_grid(pair, terms, block, self.grid_axis(rows, train)[0])

    def losses(self, grid: Any, labels: GridLabels, weights: LossWeights) -> Mapping[str, RowLosses]:
        """Compute the loss terms of each row; by default the batch-hard triplet loss of the distances.

        Args:
            grid: output of `grid`.
            labels: identities of rows and columns.
            weights: loss constants. A term is weighted by the field with the same name, or by 1 if there is none.
        """
        return {"pair_triplet": batch_hard_rows(grid, *labels, weights.margin)}

    def diagnostics(self, grid: Any) -> Mapping[str, Array]:
        """Return scalar diagnostics of a training grid, which are logged and compared with `alarms`."""
        del grid
        return {}

    # -- Helpers for stages --------------------------------------------------------------------------------------------

    def grid_axis(self, rows: int, train: bool) -> tuple[str | None, int]:
        """Return the mapped axis over which the grid is sharded, or None, and the number of columns."""
        if not train or self.axis_name is None or self.is_initializing():
            return None, rows
        columns = rows * jax.lax.axis_size(self.axis_name)
        return (self.axis_name if columns > rows else None), columns

    def columns_at_once(self, column_bytes: int, share: float = 1.0) -> int:
        """Return the number of grid columns that fit into a share of the memory budget, at least one."""
        return max(int(share * self.memory_mib * 2**20) // column_bytes, 1)
