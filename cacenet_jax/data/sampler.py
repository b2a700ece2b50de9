"""P x K sampling: each batch is a pure function of the seed and the step.

Legend: P identities per batch, K images per identity, I training identities, F feature size.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError


def look_alikes(classifier_FI: Float[np.ndarray, "F I"], count: int) -> Int[np.ndarray, "I count"]:
    """Return the `count` classes most similar to each class, by cosine similarity of the classifier weights.

    The network tends to confuse identities whose weights point in similar directions.

    Args:
        classifier_FI: classifier kernel, one column per class.
        count: number of classes to return per class; capped at I - 1.

    Returns:
        Class indices, one row per class, most similar first and excluding the class itself.
    """
    weights_FI = np.asarray(classifier_FI, np.float64)
    weights_FI = weights_FI / np.maximum(np.linalg.norm(weights_FI, axis=0), np.finfo(np.float64).tiny)
    # Round, because BLAS results differ in the last bits between hosts, and all hosts must draw the same batches.
    cosine_II = np.round(weights_FI.T @ weights_FI, 9)
    np.fill_diagonal(cosine_II, -np.inf)
    return np.argsort(-cosine_II, axis=1, kind="stable")[:, : min(count, len(cosine_II) - 1)]


class PKSampler:
    """Sampler of batches with P distinct identities and K images per identity.

    Every pass shuffles the identities and, unless `nearest` is given, draws each of them at most once. Images are drawn
    without replacement, except for identities with fewer than K images. A given step always draws the same batch, so
    training resumes exactly.

    Attributes:
        labels: class of each record, 0 .. I-1.
        num_ids: P, the number of identities per batch.
        images_per_id: K, the number of images per identity.
        seed: random seed.
        steps_per_epoch: floor(records / (P K)), the usual definition of an epoch, but at least 1.
        nearest: look-alikes of each class, most similar first (see `look_alikes`). A batch then consists of the next
            class in shuffled order and P - 1 of its look-alikes. None draws all P classes at random.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, "records"],
        num_ids: int,
        images_per_id: int,
        seed: int,
        nearest: Int[np.ndarray, "classes pool"] | None = None,
    ):
        """Group the records by class.

        Raises:
            UserError: P or K is less than 2, or P exceeds the number of identities.
        """
        self.nearest = nearest
        self.labels, self.num_ids, self.images_per_id, self.seed = labels, num_ids, images_per_id, seed
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        self._records: Sequence[np.ndarray] = np.split(order, starts[1:])
        if images_per_id < 2:
            raise UserError(
                f"config.data.images_per_id: found {images_per_id}, expected at least 2, "
                "because the triplet loss needs two images of an identity; raise it"
            )
        if num_ids < 2:
            raise UserError(
                f"config.data.num_ids: found {num_ids}, expected at least 2, because the triplet loss needs two identities; "
                "raise it"
            )
        if num_ids > len(self._records):
            raise UserError(
                f"config.data.num_ids: found {num_ids} identities a batch, but the training split has {len(self._records)}; "
                "lower num_ids or add identities"
            )
        self.steps_per_epoch = max(len(labels) // (num_ids * images_per_id), 1)

    def batch(self, step: int) -> Int[np.ndarray, "PK"]:
        """Return the record indices of the batch at `step`, shape (P K,), grouped by identity."""
        num_in_turn = self.num_ids if self.nearest is None else 1
        pass_index, position = divmod(step, len(self._records) // num_in_turn)
        shuffled = np.random.Generator(np.random.Philox([self.seed, 0, pass_index])).permutation(len(self._records))
        chosen = shuffled[position * num_in_turn : (position + 1) * num_in_turn]
        rng = np.random.Generator(np.random.Philox([self.seed, 1, step]))
        if self.nearest is not None:
            alike = rng.choice(self.nearest[chosen[0]], self.num_ids - 1, replace=False)
            chosen = np.concatenate([chosen, alike])
        rows = [self._records[identity] for identity in chosen]
        picks = [rng.choice(r, self.images_per_id, replace=len(r) < self.images_per_id) for r in rows]
        return np.concatenate(picks)
