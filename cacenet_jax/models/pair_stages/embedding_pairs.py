"""Base class of stages that compute two conditional embeddings of a pair, f(u|v) and f(v|u), and compare them.

Legend: R rows and C columns of a grid of pairs (target u, context v), F embedding size.
"""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.distributed.collectives import transpose_grid
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, batch_hard_rows, every_row, mixup_rows, safe_sqrt
from cacenet_jax.models.embedding_distance import DISTANCES
from cacenet_jax.models.heads import CONSTANT, Embedded, normalise, spread
from cacenet_jax.models.pair_stages.base import Alarm, PairStage

_CONSTANT_PAIRS = Alarm(
    "pair_spread",
    "all pairs of the batch have the same conditional embedding, so re-scoring cannot order them",
    "lower config.optim.learning_rate, or change the fields of config.model.pair",
    CONSTANT,
)


class EmbeddingPairStage(PairStage, kw_only=True):
    """Base class for stages with conditional embeddings.

    Attributes:
        embedding_distance: distance between f(u|v) and f(v|u), a name in `embedding_distance.DISTANCES` or
            MODULE:FUNCTION.
    """

    embedding_distance: str = "cosine"

    def validate(self) -> None:
        """Validate the field values."""
        DISTANCES.resolve(self.embedding_distance)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Equal conditional embeddings of all pairs."""
        return (*super().alarms, _CONSTANT_PAIRS)

    def embedding_diagnostics(self, conditional: Embedded) -> dict[str, Array]:
        """Return the spread of f(u|v) over the pairs of all devices."""
        embedding_RCF = nn.relu(conditional.embedding) if self.relu else conditional.embedding
        return {"pair_spread": spread(embedding_RCF, self.axis_name)}

    def between(self, left: Float[Array, "*batch F"], right: Float[Array, "*batch F"]) -> Float[Array, "*batch"]:
        """Normalise two batches of embeddings and compute their distances."""
        return DISTANCES.resolve(self.embedding_distance)(normalise(left), normalise(right))

    def embedding_losses(
        self,
        conditional: Embedded,
        labels: GridLabels,
        weights: LossWeights,
        combine: Callable[[Array], Array] = lambda metric_RC: metric_RC,
    ) -> dict[str, RowLosses]:
        """Compute the mix-up identity loss (equation 8) and the batch-hard triplet loss.

        The triplet loss uses sqrt(2 d) as its metric, where d is the embedding distance.

        Args:
            conditional: f(u|v) and its logits, shapes (R, C, F) and (R, C, I).
            labels: identities of rows and columns.
            weights: loss constants, of which alpha and the margin are used.
            combine: function applied to sqrt(2 d), shape (R, C), before the triplet loss; the identity by default.
        """
        mixup_R = mixup_rows(conditional.logits, labels.row_labels_R, labels.column_labels_C, weights.alpha)
        embedding_RCF = nn.relu(conditional.embedding) if self.relu else conditional.embedding
        unit_RCF = normalise(embedding_RCF)
        distance_RC = DISTANCES.resolve(self.embedding_distance)(unit_RCF, transpose_grid(unit_RCF, self.axis_name))
        triplet = batch_hard_rows(combine(safe_sqrt(2 * distance_RC)), *labels, weights.margin)
        return {"pair_identity": every_row(mixup_R), "pair_triplet": triplet}
