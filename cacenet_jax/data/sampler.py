"""P x K batches: which identities and images make up the batch of a step, a pure function of seed and step.

Legend: P identities of a batch, K images of each.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from cacenet_jax.errors import UserError


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
    """

    def __init__(self, labels: Int[np.ndarray, "records"], num_ids: int, images_per_id: int, seed: int):
        """Groups the records by class; impossible P or K is a UserError."""
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
        per_pass = len(self._records) // self.num_ids
        turn, place = divmod(step, per_pass)
        shuffled = np.random.Generator(np.random.Philox([self.seed, 0, turn])).permutation(len(self._records))
        chosen = shuffled[place * self.num_ids : (place + 1) * self.num_ids]
        draw = np.random.Generator(np.random.Philox([self.seed, 1, step]))
        rows = [self._records[identity] for identity in chosen]
        picks = [draw.choice(r, self.images_per_id, replace=len(r) < self.images_per_id) for r in rows]
        return np.concatenate(picks)
