"""P x K batches: which identities and images make up the batch of a step, a pure function of seed and step.

Legend: P identities of a batch, K images of each.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError


def look_alikes(classifier_FI: Float[np.ndarray, "F I"], count: int) -> Int[np.ndarray, "I count"]:
    """For each class the `count` others whose classifier weights are most like its own, by cosine, nearest first.

    A network confuses identities whose weights point the same way. Fewer columns where there are fewer classes.
    """
    weights_FI = np.asarray(classifier_FI, np.float64)
    weights_FI = weights_FI / np.maximum(np.linalg.norm(weights_FI, axis=0), np.finfo(np.float64).tiny)
    # Rounded, because a BLAS differs from host to host in the last bits, and all must draw the same batches.
    cosine_II = np.round(weights_FI.T @ weights_FI, 9)
    np.fill_diagonal(cosine_II, -np.inf)
    return np.argsort(-cosine_II, axis=1, kind="stable")[:, : min(count, len(cosine_II) - 1)]


class PKSampler:
    """Draws batches of P distinct identities with K images each.

    Every pass over the identities visits each as often as any other, up to one; identities with fewer than K images draw
    with replacement, the others without. Step s always draws the same batch, so training resumes exactly from a step.

    Attributes:
        labels: class 0 .. I-1 of each record.
        num_ids: P.
        images_per_id: K.
        seed: seed of all draws.
        steps_per_epoch: floor(records / (P K)), as the field counts an epoch.
        nearest: for each class the classes that look most like it, the most alike first, without itself; None for
            batches of any classes. A batch is then one class, each in turn, and P - 1 drawn from its row.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, "records"],
        num_ids: int,
        images_per_id: int,
        seed: int,
        nearest: Int[np.ndarray, "classes pool"] | None = None,
    ):
        """Groups the records by class; impossible P or K is a UserError."""
        self.nearest = nearest
        self.labels, self.num_ids, self.images_per_id, self.seed = labels, num_ids, images_per_id, seed
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        self._records: Sequence[np.ndarray] = np.split(order, starts[1:])
        if images_per_id < 2:
            raise UserError(
                f"config.data.images_per_id: found {images_per_id}, expected at least 2, "
                "because the triplet loss needs two images of an identity"
            )
        if num_ids < 2:
            raise UserError(
                f"config.data.num_ids: found {num_ids}, expected at least 2, because the triplet loss needs two identities"
            )
        if num_ids > len(self._records):
            raise UserError(
                f"config.data.num_ids: found {num_ids} identities a batch, but the training split has {len(self._records)}; "
                "lower num_ids or add identities"
            )
        self.steps_per_epoch = max(len(labels) // (num_ids * images_per_id), 1)

    def batch(self, step: int) -> Int[np.ndarray, "PK"]:
        """Record indices of the batch of a step, (P K,), the K images of an identity side by side."""
        fresh = self.num_ids if self.nearest is None else 1
        turn, place = divmod(step, len(self._records) // fresh)
        shuffled = np.random.Generator(np.random.Philox([self.seed, 0, turn])).permutation(len(self._records))
        chosen = shuffled[place * fresh : (place + 1) * fresh]
        draw = np.random.Generator(np.random.Philox([self.seed, 1, step]))
        if self.nearest is not None:
            alike = draw.choice(self.nearest[chosen[0]], self.num_ids - 1, replace=False)
            chosen = np.concatenate([chosen, alike])
        rows = [self._records[identity] for identity in chosen]
        picks = [draw.choice(r, self.images_per_id, replace=len(r) < self.images_per_id) for r in rows]
        return np.concatenate(picks)
