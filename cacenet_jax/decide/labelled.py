"""Labelled images to calibrate on: the validation split of a run, or a user's own manifest."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cacenet_jax.data.builders.source import raise_together
from cacenet_jax.data.images import decode
from cacenet_jax.data.subsets import TrainVal
from cacenet_jax.errors import UserError, printable

_SEPARATORS = (",", ";", "\t", "|")
_ALIASES = {"pid": "identity", "camid": "camera"}
_COLUMNS = "path,identity[,camera]"
_CUT = ("box", "frame")  # columns of a manifest whose images are cut from larger ones


class Labelled(NamedTuple):
    """Images with identities and cameras.

    Attributes:
        images: sequence of images, in any form that `Retriever` accepts.
        names: their names, for messages.
        pids_n: identities, 0 to I - 1.
        camids_n: cameras, -1 where unknown.
        name: name of the data.
        is_cross_camera: True if images of one identity and camera make no matching pair, as in the evaluation.
    """

    images: Sequence[Any]
    names: Sequence[str]
    pids_n: Int[np.ndarray, "n"]
    camids_n: Int[np.ndarray, "n"]
    name: str
    is_cross_camera: bool

    def take(self, rows: Int[np.ndarray, "m"]) -> "Labelled":
        """Return some of the images, with the same numbers of identities."""
        images, names = _Rows(self.images, rows), [self.names[i] for i in rows.tolist()]
        return self._replace(images=images, names=names, pids_n=self.pids_n[rows], camids_n=self.camids_n[rows])


class _Rows(Sequence[Any]):
    """Some items of a sequence, read when they are asked for."""

    def __init__(self, items: Sequence[Any], rows: np.ndarray):
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        rows = self._rows[index]
        return [self._items[int(row)] for row in rows] if isinstance(index, slice) else self._items[int(rows)]


class _Decoded(Sequence[Any]):
    """Images of the records of a split, decoded when they are asked for."""

    def __init__(self, records: Any, names: Sequence[str], image_size: tuple[int, int]):
        self._records, self._names, self._size = records, names, image_size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode(self._records[index]["image"], *self._size, self._names[index])


def of_validation(cut: TrainVal, image_size: tuple[int, int], name: str, is_cross_camera: bool) -> Labelled:
    """Return the images of the identities held out for validation.

    Args:
        cut: training split divided by identity.
        image_size: (H, W) of the network's input.
        name: name of the data set.
        is_cross_camera: as in `Labelled`.
    """
    split, rows = cut.query.split, np.sort(np.concatenate([cut.query.indices, cut.gallery.indices]))
    pids_n = np.unique(split.pids[rows], return_inverse=True)[1]
    images = _Rows(_Decoded(split.records, split.names, image_size), rows)
    names = [split.names[row] for row in rows]
    return Labelled(images, names, pids_n, split.camids[rows], f"the validation split of {name}", is_cross_camera)


def read_manifest(path: str | os.PathLike[str]) -> Labelled:
    """Read a manifest of labelled images.

    Its columns are path (relative to the manifest), identity and, if known, camera; others are ignored, and pid and camid
    are other names for the last two. Rows without an identity are left out.

    Raises:
        UserError: the file cannot be read, a column is missing, or rows have mistakes, which are listed.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"--images={printable(str(path))}: cannot be read ({reason}), expected a manifest, a table with the columns "
            f"{_COLUMNS}; correct the path"
        ) from error
    columns, rows = _parse(text, str(path))
    names, identities, cameras = ([row.get(column, "") for _, row in rows] for column in ("path", "identity", "camera"))
    paths = [file.parent / os.path.expanduser(name) for name in names]
    seen: dict[str, int] = {}
    mistakes = []
    for (line, row), place in zip(rows, paths):
        where = f"{printable(str(path))} line {line}"
        before = seen.setdefault(row["path"], line)
        if not place.is_file():
            mistakes.append(
                f"{where}: found no file {printable(str(place))!r}, expected an image; paths are relative to the manifest"
            )
        elif before != line:
            mistakes.append(f"{where}: found the image of line {before} again, expected it once; delete one")
        elif any(row.get(column) for column in _CUT):
            mistakes.append(f"{where}: found a box or frame, expected an image of one person; write the crops to files")
    raise_together(mistakes)
    chosen = np.array([i for i, identity in enumerate(identities) if identity], int)
    if not len(chosen):
        raise UserError(f"{printable(str(path))}: found no row with an identity, expected labelled images; fill it in")
    pids_n = np.unique([identities[i] for i in chosen], return_inverse=True)[1]
    known = [cameras[i] for i in chosen]
    numbers = {camera: number for number, camera in enumerate(sorted(set(known) - {""}))}
    camids_n = np.array([numbers.get(camera, -1) for camera in known])
    images = [paths[i] for i in chosen]
    return Labelled(images, [str(image) for image in images], pids_n, camids_n, file.name, "camera" in columns)


def _parse(text: str, where: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns and the (line number, cells) of each row."""
    header = text.split("\n", 1)[0].strip()
    separator = max(_SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        columns = [_ALIASES.get(cell.strip().lower(), cell.strip().lower()) for cell in next(reader, ())]
        if missing := [column for column in ("path", "identity") if column not in columns]:
            raise UserError(
                f"{printable(where)}: found {printable(header, 200) or 'nothing'} in the first line, without "
                f"{' and '.join(missing)}, expected {_COLUMNS}; correct the first line"
            )
        rows = []
        for row in reader:
            if any(row):
                rows.append((reader.line_num, dict(zip(columns, (cell.strip() for cell in row)))))
    except csv.Error as error:
        raise UserError(f"{printable(where)} line {reader.line_num}: {error}, expected a table; correct it") from error
    raise_together(
        [
            f"{printable(where)} line {line}: found {len(row)} cells, expected {len(columns)}; fill in the line"
            for line, row in rows
            if not {"path", "identity"} <= set(row)
        ]
    )
    return columns, rows
