"""Subsets of a split, with contiguous class labels, and a validation set of held-out identities."""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cacenet_jax.data.builders import Split
from cacenet_jax.errors import UserError


class Subset(NamedTuple):
    """Subset of the records of a split.

    Attributes:
        split: split that contains the records.
        indices: indices of the records, shape (n,).
    """

    split: Split
    indices: Int[np.ndarray, "n"]

    @property
    def pids(self) -> Int[np.ndarray, "n"]:
        """Identity of each record, shape (n,)."""
        return self.split.pids[self.indices]

    @property
    def camids(self) -> Int[np.ndarray, "n"]:
        """Camera of each record, shape (n,)."""
        return self.split.camids[self.indices]

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """Class of each record, 0 .. I-1 in ascending order of identity, shape (n,)."""
        return np.unique(self.pids, return_inverse=True)[1]

    def summary(self) -> dict[str, str | int]:
        """Return the numbers of images and identities, a hash of all names and identities in order, and one of the images.

        The hash of the images, "pixels", is missing if their checksums are unknown.
        """
        content = hashlib.sha256("\n".join(self.split.names[i] for i in self.indices).encode())
        content.update(np.ascontiguousarray(self.pids).tobytes())
        summary: dict[str, str | int] = {"images": len(self.indices), "identities": self.num_identities}
        summary["sha256"] = content.hexdigest()[:16]
        if self.split.checksums is not None:
            summary["pixels"] = hashlib.sha256(self.split.checksums[self.indices].tobytes()).hexdigest()[:16]
        return summary

    @property
    def num_identities(self) -> int:
        """Number of identities."""
        return len(np.unique(self.pids))


class TrainVal(NamedTuple):
    """Training split divided by identity into training and validation.

    Attributes:
        train: training records.
        query: validation queries, one image per camera of each held-out identity.
        gallery: all other images of the held-out identities.
    """

    train: Subset
    query: Subset
    gallery: Subset


def all_records(split: Split) -> Subset:
    """Return all records of a split as a subset."""
    return Subset(split, np.arange(len(split)))


def cut_validation(split: Split, share: float, seed: int, group: int = 1) -> TrainVal:
    """Hold out a share of the identities, with all their images, for validation.

    Args:
        split: training split.
        share: fraction of the identities to hold out, in [0, 1). If it is positive, at least two are held out.
        seed: random seed for the choice of identities.
        group: number of consecutive identities held out together, which keeps look-alikes on the same side of the cut.

    Returns:
        Training records, validation queries and validation gallery. Training and validation share no identity.

    Raises:
        UserError: fewer than two identities remain for training, or `share` is outside [0, 1).
    """
    identities = np.unique(split.pids)
    if len(identities) < 2:
        raise UserError(
            f"training split: found {len(identities)} identity, expected at least 2 to train on; add images of "
            "other people"
        )
    held = max(round(share * len(identities)), 2) if share else 0
    if not 0 <= share < 1 or len(identities) - held < 2:
        raise UserError(
            f"config.data.val_share: found {share}, which leaves {len(identities) - held} of {len(identities)} identities "
            "to train on, expected at least 2; lower it, or set it to 0 for no validation"
        )
    groups = np.arange(len(identities)) // group
    order = np.random.Generator(np.random.Philox([seed, 2])).permutation(groups[-1] + 1)
    chosen = identities[np.isin(groups, order[: -(-held // group)])]
    if len(identities) - len(chosen) < 2:
        raise UserError(
            f"config.data.val_group: found {group}, which with config.data.val_share={share} leaves "
            f"{len(identities) - len(chosen)} of {len(identities)} identities to train on, expected at least 2; lower one"
        )
    is_held = np.isin(split.pids, chosen)
    held_indices = np.flatnonzero(is_held)
    pairs = np.stack([split.pids[held_indices], split.camids[held_indices]], axis=1).reshape(-1, 2)
    first = np.unique(pairs, axis=0, return_index=True)[1] if held else np.zeros(0, int)
    is_query = np.isin(np.arange(len(held_indices)), first)
    return TrainVal(
        Subset(split, np.flatnonzero(~is_held)),
        Subset(split, held_indices[is_query]),
        Subset(split, held_indices[~is_query]),
    )
