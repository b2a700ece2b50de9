"""Labelled images to calibrate on: the validation split of a run, or a user's own manifest."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cacenet_jax.data.image_files import ImageError
from cacenet_jax.data.images import decode
from cacenet_jax.data.photographs import Photograph, list_manifest, read_photograph
from cacenet_jax.data.subsets import TrainVal
from cacenet_jax.errors import UserError, printable


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


class _Photographs(Sequence[Any]):
    """Paths of images, and the pixels of crops and frames, which are read when they are asked for."""

    def __init__(self, root: Path, rows: Sequence[Photograph]):
        self._root, self._rows = root, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._rows[index]
        if row.box is None and row.frame is None:
            return self._root / row.path
        try:
            return read_photograph(self._root, row)
        except (ImageError, OSError) as error:
            raise UserError(f"{printable(row.id)}: {error}") from error


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

    Its columns are those of `data.photographs`; identity is needed. Rows without an identity are left out.

    Raises:
        UserError: the file cannot be read, a column is missing, or rows have mistakes, which are listed.
    """
    file = Path(path).expanduser()
    listed = list_manifest(file, ("identity",), "path,identity[,camera][,x1,y1,x2,y2][,frame]")
    rows = [row for row in listed.rows if row.columns["identity"] is not None]
    if not rows:
        raise UserError(f"{printable(str(path))}: found no row with an identity, expected labelled images; fill it in")
    pids_n = np.unique([str(row.columns["identity"]) for row in rows], return_inverse=True)[1]
    has_cameras = any("camera" in row.columns for row in rows)
    known = [row.columns.get("camera") for row in rows]
    numbers = {camera: number for number, camera in enumerate(sorted({c for c in known if c is not None}, key=str))}
    camids_n = np.array([-1 if camera is None else numbers[camera] for camera in known])
    images = _Photographs(listed.root, rows)
    return Labelled(images, [str(listed.root / row.id) for row in rows], pids_n, camids_n, file.name, has_cameras)
