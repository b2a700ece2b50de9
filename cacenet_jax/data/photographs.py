"""Photographs to index: the images of a folder, or the rows of a manifest.

A manifest is a table with a column `path` (relative to the manifest) and any of

    x1, y1, x2, y2, or box   pixels of a crop in the image, for example from a detector; box is "x1,y1,x2,y2"
    frame                    number of a frame, from 0, if the path is that of a video
    camera, time, track, identity

and further columns, which are kept. A column whose cells are all numbers becomes one of numbers.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from cacenet_jax.data import table
from cacenet_jax.data.image_files import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, ImageError, read_file, rgb
from cacenet_jax.errors import UserError, printable, raise_together

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
KNOWN = ("camera", "time", "track", "identity")
_BOX = ("x1", "y1", "x2", "y2")
_ALIASES = {"camid": "camera", "pid": "identity", "file": "path", "image": "path"}
_RESERVED = ("id", "bytes", "modified", "embedding", "terms", "rank", "distance", "individual", "pair", "mixed")
_VIDEO_LOCK = threading.Lock()


class Photograph(NamedTuple):
    """One image: a file, a crop of a file, or a frame of a video.

    Attributes:
        id: name in the index: the path, with #x1,y1,x2,y2 for a crop and @N for a frame.
        path: path relative to `Photographs.root`, with forward slashes.
        box: (x1, y1, x2, y2) in pixels, x2 and y2 exclusive, or None for the whole image.
        frame: number of the frame, or None for an image file.
        bytes: size of the file.
        modified: its modification time, in nanoseconds.
        columns: values of the other columns; None where a cell is empty.
    """

    id: str
    path: str
    box: tuple[int, int, int, int] | None
    frame: int | None
    bytes: int
    modified: int
    columns: Mapping[str, str | float | int | None]


class Photographs(NamedTuple):
    """Photographs of a folder or a manifest, sorted by id.

    Attributes:
        root: folder that their paths are relative to.
        rows: the photographs.
        notes: lines about files that are left out.
    """

    root: Path
    rows: Sequence[Photograph]
    notes: Sequence[str]


def list_photographs(place: str | os.PathLike[str]) -> Photographs:
    """List the photographs of a folder, with its subfolders, or of a manifest.

    Raises:
        UserError: there is no such folder or file, it holds no images, or the manifest has mistakes, which are listed.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return list_manifest(path)
    raise UserError(
        f"--images={printable(str(place))}: found nothing there, expected a folder of images or a manifest (CSV); correct "
        "the path"
    )


def _of_folder(root: Path) -> Photographs:
    rows, others, unnamed = [], [], 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.startswith("."):
                continue
            path, suffix = Path(folder, name), os.path.splitext(name)[1].lower()
            relative = path.relative_to(root).as_posix()
            if suffix in OTHER_IMAGE_SUFFIXES:
                others.append(relative)
            if suffix not in IMAGE_SUFFIXES:
                continue
            try:
                relative.encode()
                status = path.stat()
            except (UnicodeEncodeError, OSError):  # a name that is no UTF-8, or a link to nothing
                unnamed += 1
                continue
            rows.append(Photograph(relative, relative, None, None, status.st_size, status.st_mtime_ns, {}))
    notes = []
    if others:
        notes.append(
            f"{len(others)} files with suffixes of images that are not read, such as {printable(others[0])}: convert them"
        )
    if unnamed:
        notes.append(f"{unnamed} files whose names are no UTF-8, or that cannot be opened: rename them")
    if not rows:
        raise UserError(
            f"--images={printable(str(root))}: found no images ({', '.join(IMAGE_SUFFIXES)}) in the folder"
            + "".join(f"; {note}" for note in notes)
            + ", expected some; correct the path"
        )
    return Photographs(root, sorted(rows), notes)


def list_manifest(
    file: Path, required: Sequence[str] = (), expected: str = f"path[,x1,y1,x2,y2][,frame][,{'][,'.join(KNOWN)}]"
) -> Photographs:
    """List the photographs of a manifest.

    Args:
        file: path of the manifest.
        required: columns that it must have besides path.
        expected: its columns, for error messages.

    Raises:
        UserError: the file cannot be read, or it has mistakes, which are listed.
    """
    where = printable(str(file))
    text = table.read_text(file, f"--images={where}", f"a folder or a manifest, a table with the columns {expected}")
    columns, cells = table.parse(text, where, ("path", *required), expected, _ALIASES)
    wrong = [name for name in columns if name in _RESERVED or not name.isidentifier() or columns.count(name) > 1]
    if wrong:
        raise UserError(
            f"{where}: found the column {printable(wrong[0])!r}, expected letters, digits and _, each name once and none of "
            f"{', '.join(_RESERVED)}; rename it"
        )
    names = [column for column in columns if column not in ("path", "box", "frame", *_BOX)]
    values = {name: _typed([row.cells[name] for row in cells]) for name in names}
    mistakes: list[str] = []
    rows: list[Photograph] = []
    seen: dict[str, int] = {}  # line of each id
    for place, (line, row) in enumerate(cells):
        try:
            if not row["path"]:
                raise ValueError("found an empty path, expected one; fill it in")
            box, frame = table.box(row), table.whole_number(row, "frame")
            path = Path(file.parent, os.path.expanduser(row["path"]))
            relative = Path(os.path.relpath(path, file.parent)).as_posix()
            if frame is None and path.suffix.lower() in VIDEO_SUFFIXES:
                raise ValueError("found a video without a frame, expected the number of one; fill in the column frame")
            try:
                status = path.stat()
            except OSError as error:
                raise ValueError(
                    f"found no file {printable(str(path))!r}, expected an image; paths are relative to the manifest"
                ) from error
            name = relative + suffix(box, frame)
            if name in seen:
                raise ValueError(f"found the image of line {seen[name]} again, expected it once; delete one")
            seen[name] = line
            kept = {column: values[column][place] for column in names}
            rows.append(Photograph(name, relative, box, frame, status.st_size, status.st_mtime_ns, kept))
        except ValueError as error:
            mistakes.append(f"{where} line {line}: {error}")
    raise_together(mistakes)
    if not rows:
        raise UserError(f"{where}: found no rows, expected images; fill in the manifest")
    return Photographs(file.parent, sorted(rows, key=lambda row: row.id), [])


def suffix(box: tuple[int, int, int, int] | None, frame: int | None) -> str:
    """Return what the name of a crop or a frame has after that of its file."""
    return (f"@{frame}" if frame is not None else "") + (f"#{','.join(map(str, box))}" if box else "")


def _typed(cells: Sequence[str]) -> list[str | float | int | None]:
    """Return the values of a column: whole numbers or numbers if all cells are, else text; None for empty cells."""
    for kind in (int, float):
        try:
            return [kind(cell) if cell else None for cell in cells]
        except ValueError:
            continue
    return [cell or None for cell in cells]


def read_photograph(root: Path, photograph: Photograph) -> UInt8[np.ndarray, "h w 3"]:
    """Read the RGB pixels of a photograph, by the rules of `data.image_files`.

    Raises:
        ImageError: the file is refused, or the box lies outside the image.
        OSError: the file cannot be read.
    """
    path = root / photograph.path
    if photograph.frame is not None:
        return cut_out(read_frame(path, photograph.frame), photograph.box)
    return cut_out(rgb(read_file(path)), photograph.box)


def cut_out(
    pixels_hw3: UInt8[np.ndarray, "h w 3"], box: tuple[int, int, int, int] | None
) -> UInt8[np.ndarray, "y x 3"]:
    """Return the pixels of a box, cut at the border of the image, or all of them if it is None.

    Raises:
        ImageError: the box lies outside the image.
    """
    if box is None:
        return pixels_hw3
    left, top, right, bottom = box
    height, width = pixels_hw3.shape[:2]
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        raise ImageError(
            f"found the box {','.join(map(str, box))} outside an image of {width} x {height} pixels, expected one inside; "
            "correct it"
        )
    return np.ascontiguousarray(pixels_hw3[top:bottom, left:right])


def read_frame(path: str | os.PathLike[str], number: int) -> UInt8[np.ndarray, "h w 3"]:
    """Read the RGB pixels of a frame of a video.

    Raises:
        ImageError: there is no such frame.
    """
    with _VIDEO_LOCK:
        video = cv2.VideoCapture(os.fspath(path))
        try:
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            is_read, pixels = video.read()
        finally:
            video.release()
    if not is_read:
        raise ImageError(f"found no frame {number} in the video, expected one; correct the column frame")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def in_batches(rows: Sequence[Photograph], size: int) -> Iterator[Sequence[Photograph]]:
    """Yield the photographs in batches."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def as_columns(photograph: Photograph) -> dict[str, Any]:
    """Return the row of a photograph without embedding and terms."""
    box = None if photograph.box is None else list(photograph.box)
    plain = photograph._asdict() | {"box": box}
    return {**{name: None for name in KNOWN}, **plain.pop("columns"), **plain}
