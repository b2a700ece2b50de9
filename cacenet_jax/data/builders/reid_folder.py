"""Anybody's images: a CSV manifest `path,pid[,camid][,split]`, or names in the style of Market-1501."""

import csv
import io
import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cacenet_jax.data.builders.base import NO_CAMERA, SPLITS, Entry, FileScan, ReidBuilder, Scan
from cacenet_jax.data.builders.market_style import FOLDERS, entries_of_folder
from cacenet_jax.data.builders.source import IMAGE_SUFFIXES, Source, locate, open_source
from cacenet_jax.errors import UserError

_SPLIT_OF_FOLDER = {split: split for split in SPLITS} | {folder: split for split, folder in FOLDERS.items()}


class ReidFolder(ReidBuilder, skip_registration=True):
    """The user's own images, in a folder or a zip.

    With a manifest (manifest.csv, another name by the option `manifest`, or a data root that is itself a .csv
    file) the paths are relative to the manifest. `pid` and `camid` are integers, or names throughout, which
    are numbered from 0 in sorted order; an empty or absent camid means that the camera is unknown (-1).
    Without a `split` column the first folder of a path names its split: train, query, gallery, or
    Market-1501's folder names.

    Without a manifest the identity, and the camera if any, are read off the names: 0002_c1….jpg or
    0002_….jpg. A pid of -1 is junk and dropped.
    """

    name = "reid_folder"
    SUMMARY = "A user's own person images."
    HOME = (
        "add manifest.csv with the columns path,pid,camid,split, or sort the images into the folders train, "
        "query and gallery"
    )
    OPTIONS: ClassVar[Mapping[str, Any]] = {"manifest": "manifest.csv"}

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Read the manifest or the folders. Raises UserError for what does not parse or does not exist."""
        manifest = options["manifest"]
        if root.lower().endswith(".csv") and not os.path.isdir(root):
            root, manifest = os.path.split(os.path.abspath(os.path.expanduser(root)))
        source = open_source(root)
        layouts = {"manifest": (manifest,), "plain": SPLITS, "market": tuple(FOLDERS.values())}
        if manifest != cls.OPTIONS["manifest"]:  # asked for by name: no fallback
            layouts = {"manifest": (manifest,)}
        place = locate(source, layouts, (), cls.HOME)
        if place.layout == "manifest":
            return FileScan(source, place.folder, _read_manifest(source, posixpath.join(place.folder, manifest)))
        names = dict(zip(SPLITS, SPLITS)) if place.layout == "plain" else FOLDERS
        folders = {split: posixpath.join(place.folder, folder) for split, folder in names.items()}
        return FileScan(
            source,
            place.folder,
            {s: entries_of_folder(source, f, camera_optional=True) for s, f in folders.items()},
        )


def _read_manifest(source: Source, path: str) -> dict[str, list[Entry]]:
    """Return the entries of each split that a manifest lists."""
    where = source.where(path)
    reader = csv.DictReader(io.StringIO(source.read_text(path), newline=""), skipinitialspace=True)
    columns = [(column or "").strip().lower() for column in reader.fieldnames or ()]
    missing = [column for column in ("path", "pid") if column not in columns]
    if missing:
        found = ",".join(columns) or "nothing"
        raise UserError(
            f"{where}: no column {' and '.join(missing)} in the first line ({found}); expected path,pid[,camid][,split]"
        )
    reader.fieldnames = columns

    rows, lines = [], []
    for row in reader:
        rows.append({column: (row[column] or "").strip() for column in columns})
        lines.append(f"{where} line {reader.line_num}")
    pids = _numbers([row["pid"] for row in rows], "pid", lines)
    camids = _numbers([row.get("camid", "") for row in rows], "camid", lines)

    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    base = posixpath.dirname(path)
    for row, line, pid, camid in zip(rows, lines, pids, camids):
        if pid is None:
            raise UserError(f"{line}: pid is empty; expected an integer or a name; fill it in")
        name = posixpath.normpath(row["path"].replace("\\", "/"))
        if not name.lower().endswith(IMAGE_SUFFIXES):
            raise UserError(
                f"{line}: path {row['path']!r} is no image; expected a name in {', '.join(IMAGE_SUFFIXES)}; correct it"
            )
        image = posixpath.normpath(posixpath.join(base, name))
        if source.stamp(image) is None:
            raise UserError(
                f"{line}: {source.where(image)} does not exist; paths are relative to the manifest; correct the line"
            )
        split = row["split"] if "split" in columns else _SPLIT_OF_FOLDER.get(name.split("/")[0], "")
        if split not in splits:
            source_of = "split" if "split" in columns else "the first folder of path (there is no column split)"
            raise UserError(
                f"{line}: {source_of} is {split or name.split('/')[0]!r}; expected train, query or gallery; correct it"
            )
        splits[split].append(Entry(image, name, pid, NO_CAMERA if camid is None else camid))
    return splits


def _numbers(values: list[str], column: str, lines: list[str]) -> list[int | None]:
    """Return integers as they are, names numbered in sorted order, None for empty values."""
    is_integer = [re.fullmatch(r"[+-]?\d+", value) is not None for value in values]
    is_name = [bool(value) and not integer for value, integer in zip(values, is_integer)]
    if not any(is_name):
        return [int(value) if value else None for value in values]
    if any(is_integer):
        row = is_name.index(True) if sum(is_name) <= sum(is_integer) else is_integer.index(True)
        raise UserError(
            f"{lines[row]}: {column} {values[row]!r}, but other lines have "
            f"{'integers' if is_name[row] else 'names'}; "
            f"expected integers throughout or names throughout; correct the column"
        )
    number_of = {name: number for number, name in enumerate(sorted(set(values) - {""}))}
    return [number_of.get(value) for value in values]
