"""Manifests of photographs of an index with identities, to correct, to train on and to calibrate with."""

import csv
import io
from collections.abc import Mapping

from cacenet_jax.index.index import Index

_COLUMNS = ("path", "identity", "camera", "x1", "y1", "x2", "y2", "frame", "group")


def manifest(index: Index, identities: Mapping[str, str]) -> str:
    """Return a CSV table of photographs with absolute paths, sorted by identity.

    The column `group` repeats the identity, so that a correction of `identity` shows.

    Args:
        index: the index.
        identities: identity of each photograph, by its name in the index.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    rows = zip(index.rows_of(list(identities)), identities.values())
    for row, identity in sorted(rows, key=lambda pair: (_sortable(pair[1]), pair[0]["id"])):
        box = row["box"] or [None] * 4
        path = (index.root / row["path"]).as_posix()
        writer.writerow([path, identity, row["camera"], *box, row["frame"], identity])
    return text.getvalue()


def _sortable(identity: str) -> tuple[int, str]:
    return (int(identity), "") if identity.isascii() and identity.isdecimal() else (-1, identity)
