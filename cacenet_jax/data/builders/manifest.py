"""Manifests: tables of a user's own images with the columns path, pid and, if known, camid and split.

They may also have the columns of `data.photographs`: identity and camera in place of pid and camid, a box, a frame.
"""

import os
import posixpath
import re
from collections.abc import Mapping, Sequence

from cacenet_jax.data import table
from cacenet_jax.data.builders.market_style import FOLDERS
from cacenet_jax.data.builders.scan import NO_CAMERA, SPLITS, Entry
from cacenet_jax.data.builders.source import Source
from cacenet_jax.data.image_files import IMAGE_SUFFIXES
from cacenet_jax.data.photographs import VIDEO_SUFFIXES, suffix
from cacenet_jax.errors import UserError, raise_together

_SPLIT_OF_FOLDER = {split: split for split in SPLITS} | {folder: split for split, folder in FOLDERS.items()}
_ALIASES = {"identity": "pid", "camera": "camid"}
_MAX_LABEL = 1000  # characters
_INTEGER = re.compile(r"[+-]?\d+(?:\.0*)?")  # pandas writes 1.0 in a column of integers with an empty cell


def read_manifest(
    source: Source, path: str, default_split: str | None = None, is_alone: bool = False
) -> dict[str, list[Entry]]:
    """Parse a manifest into the entries of each split.

    Args:
        source: source that contains the manifest.
        path: path of the manifest.
        default_split: split of all images if there is no column `split`; None takes it from the first folder of the path.
        is_alone: True if the manifest is the data root: where neither a column nor a folder names a split, all images are
            then for training.

    Raises:
        UserError: a column is missing, or cells are empty or do not parse; the message has one line per mistake.
    """
    where = source.display_path(path)
    columns, rows = table.parse(source.read_text(path), where, ("path", "pid"), "path,pid[,camid][,split]", _ALIASES)
    lines = [f"{where} line {row.line}" for row in rows]
    cells = [row.cells for row in rows]
    pids = parse_column([row["pid"] for row in cells], "pid", lines)
    camids = parse_column([row.get("camid", "") for row in cells], "camid", lines)

    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    names = [posixpath.normpath(row["path"].replace("\\", "/")) for row in cells]
    if is_alone and "split" not in columns and not any(name.split("/")[0] in _SPLIT_OF_FOLDER for name in names):
        default_split = "train"
    base = posixpath.dirname(path)
    mistakes: list[str] = []
    for row, line, name, pid, camid in zip(cells, lines, names, pids, camids):
        image = posixpath.normpath(posixpath.join(base, os.path.expanduser(name)))
        split = (
            row["split"].lower() if "split" in columns else default_split or _SPLIT_OF_FOLDER.get(name.split("/")[0])
        )
        errors = list(_row_errors(source, row, image, pid, split))
        mistakes += [f"{line}: {error}" for error in errors]
        if not errors and split is not None and pid is not None:
            box, frame = table.box(row), table.whole_number(row, "frame")
            camid = NO_CAMERA if camid is None else camid
            splits[split].append(Entry(image, name + suffix(box, frame), pid, camid, box, frame))
    raise_together(mistakes)
    return splits


def _row_errors(source: Source, row: Mapping[str, str], image: str, pid: int | None, split: str | None) -> list[str]:
    """Return the mistakes in a row."""
    errors = []
    if pid is None:
        errors.append("found an empty pid, expected an integer or a name; fill it in")
    try:
        table.box(row)
        frame = table.whole_number(row, "frame")
    except ValueError as error:
        errors.append(str(error))
        frame = None
    if not image.lower().endswith(IMAGE_SUFFIXES if frame is None else VIDEO_SUFFIXES):
        errors.append(
            f"path {row['path']!r} is no image; expected a name in {', '.join(IMAGE_SUFFIXES)}; correct or convert it"
        )
    else:
        errors += _image_error(source, image)
    if split == "":
        errors.append("found an empty split, expected train, query or gallery; fill it in")
    elif split not in SPLITS:
        column = "split" if "split" in row else "the first folder of path (there is no column split)"
        value = row["split"] if "split" in row else posixpath.normpath(row["path"].replace("\\", "/")).split("/")[0]
        errors.append(
            f"{column} is {value!r}; expected train, query or gallery; correct it, or set config.data.options.test_ids"
            if "split" not in row
            else f"{column} is {value!r}; expected train, query or gallery; correct it"
        )
    return errors


def _image_error(source: Source, image: str) -> list[str]:
    """Return the mistake in the path of an image, if there is one."""
    try:
        if source.stamp(image) is not None:
            return []
        where = source.display_path(image)
    except UserError as error:  # outside the root
        return [str(error)]
    return [f"{where} does not exist; paths are relative to the manifest; correct the line"]


def parse_column(values: Sequence[str], column: str, lines: Sequence[str]) -> list[int | None]:
    """Convert a column to integers. Names are numbered in sorted order; empty values become None.

    Args:
        values: values of the column.
        column: name of the column, for error messages.
        lines: file and line of each value, for error messages.

    Raises:
        UserError: the column mixes integers and names, or a value is very long.
    """
    raise_together(
        [
            f"{line}: found a {column} of {len(value):,} characters, expected at most {_MAX_LABEL:,}; correct it"
            for line, value in zip(lines, values)
            if len(value) > _MAX_LABEL
        ]
    )
    is_integer = [_INTEGER.fullmatch(value) is not None for value in values]
    is_name = [bool(value) and not integer for value, integer in zip(values, is_integer)]
    if not any(is_name):
        return [int(value.partition(".")[0]) if value else None for value in values]
    if any(is_integer):
        row = is_name.index(True) if sum(is_name) <= sum(is_integer) else is_integer.index(True)
        raise UserError(
            f"{lines[row]}: {column} {values[row]!r}, but other lines have "
            f"{'integers' if is_name[row] else 'names'}; "
            f"expected integers throughout or names throughout; correct the column"
        )
    number_of = {name: number for number, name in enumerate(sorted(set(values) - {""}))}
    return [number_of.get(value) for value in values]
