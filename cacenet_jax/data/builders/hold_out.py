"""Division of a set of images into train, query and gallery by identity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cacenet_jax.data.builders.scan import NO_CAMERA, Entry
from cacenet_jax.errors import UserError


def hold_out(
    splits: Mapping[str, Sequence[Entry]], count: int, seed: int, where: str
) -> tuple[dict[str, list[Entry]], dict[str, Any]]:
    """Move random identities, with all their images, from train to query and gallery.

    An identity is a candidate if a query can have a match: it has images of two cameras or, if its cameras are unknown,
    two images. The first image of each camera becomes a query as long as every query keeps a match in the gallery.

    Args:
        splits: entries of each split; query and gallery must be empty.
        count: number of identities to move.
        seed: random seed for the choice.
        where: data set, for error messages.

    Returns:
        The splits, and the choice for metadata.json.

    Raises:
        UserError: there is a test split already, or there are fewer candidates.
    """
    if splits.get("query") or splits.get("gallery"):
        raise UserError(
            f"{where}: found images for query or gallery, expected none with config.data.options.test_ids={count}; set it "
            "to 0 to use them"
        )
    by_pid: dict[int, list[Entry]] = {}
    for entry in sorted(splits.get("train", ()), key=lambda entry: entry.name):
        by_pid.setdefault(entry.pid, []).append(entry)
    divided = {pid: _divide(entries) for pid, entries in sorted(by_pid.items()) if pid >= 0}
    candidates = [pid for pid, (query, _) in divided.items() if query]
    if not 0 < count <= len(candidates):
        raise UserError(
            f"config.data.options.test_ids: found {count}, expected 1 to {len(candidates)}, the number of identities "
            f"with images of two cameras in {where}; lower it"
        )
    order = np.random.Generator(np.random.Philox([seed, 3])).permutation(len(candidates))
    chosen = sorted(candidates[i] for i in order[:count])
    report = {"test_identities": chosen, "test_seed": seed}
    return {
        "train": [entry for pid, entries in by_pid.items() if pid not in chosen for entry in entries],
        "query": [entry for pid in chosen for entry in divided[pid][0]],
        "gallery": [entry for pid in chosen for entry in divided[pid][1]],
    }, report


def _divide(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Divide the images of an identity into queries, perhaps none, and gallery."""
    query: list[Entry] = []
    gallery = list(entries)
    first_of = {entry.camid: entry for entry in reversed(entries)}
    for entry in sorted(first_of.values(), key=lambda entry: entry.name):
        queries, rest = [*query, entry], [other for other in gallery if other is not entry]
        if all(any(_match(one, other) for other in rest) for one in queries):
            query, gallery = queries, rest
    return query, gallery


def _match(query: Entry, other: Entry) -> bool:
    return query.camid == NO_CAMERA or query.camid != other.camid
