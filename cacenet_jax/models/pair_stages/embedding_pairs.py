"""Stages that give each image of a pair an embedding, f(u|v) and f(v|u), and compare the two.

Legend: R rows and C columns of a grid of pairs (target u, context v), F embedding size.
"""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.distributed.collectives import transpose_grid
from cacenet_jax.losses import GridLabels, LossWeights, RowLosses, batch_hard_rows, every_row, mixup_rows, safe_sqrt
from cacenet_jax.models.embedding_distance import DISTANCES
from cacenet_jax.models.heads import Embedded, normalise
from cacenet_jax.models.pair_stages.base import PairStage


class EmbeddingPairStage(PairStage, kw_only=True):
    """Base of the stages with conditional embeddings.

    Attributes:
        embedding_distance: distance of f(u|v) and f(v|u): a name of `embedding_distance.DISTANCES`, or MODULE:FUNCTION.
    """

    embedding_distance: str = "cosine"

    def validate(self) -> None:
        """Check the values of the fields."""
        DISTANCES.resolve(self.embedding_distance)

    def between(self, left: Float[Array, "*batch F"], right: Float[Array, "*batch F"]) -> Float[Array, "*batch"]:
        """Compute the distance of embeddings, which are normalised here."""
        return DISTANCES.resolve(self.embedding_distance)(normalise(left), normalise(right))

    def embedding_losses(
        self,
        conditional: Embedded,
        labels: GridLabels,
        weights: LossWeights,
        combine: Callable[[Array], Array] = lambda metric_RC: metric_RC,
    ) -> dict[str, RowLosses]:
        """Mix-up identity loss (equation 8), and batch-hard triplet loss of the metric form of the pair distances.

        Args:
            conditional: f(u|v) and its logits, (R, C, F) and (R, C, I).
            labels: identities of rows and columns.
            weights: alpha and the margin.
            combine: applied to the metric form of the distances of embeddings, (R, C).
        """
        mixup_R = mixup_rows(conditional.logits, labels.row_labels_R, labels.column_labels_C, weights.alpha)
        embedding_RCF = nn.relu(conditional.embedding) if self.relu else conditional.embedding
        unit_RCF = normalise(embedding_RCF)
        distance_RC = DISTANCES.resolve(self.embedding_distance)(unit_RCF, transpose_grid(unit_RCF, self.axis_name))
        triplet = batch_hard_rows(combine(safe_sqrt(2 * distance_RC)), *labels, weights.margin)
        return {"pair_identity": every_row(mixup_R), "pair_triplet": triplet}
