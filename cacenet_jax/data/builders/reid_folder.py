"""Custom image folders, with a CSV manifest `path,pid[,camid][,split]` or file names in Market-1501 style."""

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
    """Builder for the user's own images, in a folder or a zip.

    The manifest is manifest.csv, the file named by the option `manifest`, or the data root itself if that is a .csv
    file. Its paths are relative to the manifest. The columns `pid` and `camid` must each contain only integers or only
    names; names are numbered from 0 in sorted order. An empty or absent camid means that the camera is unknown (-1).
    Without a `split` column, the first folder of the path determines the split: train, query, gallery, or a Market-1501
    folder name.

    Without a manifest, the identity and the optional camera are parsed from file names such as 0002_c1….jpg or
    0002_….jpg. Images with pid -1 are junk and are dropped.
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
        """Scan the manifest or the folders.

        Raises:
            UserError: a file is missing, or a line or a file name does not parse.
        """
        manifest = options["manifest"]
        if root.lower().endswith(".csv") and not os.path.isdir(root):
            root, manifest = os.path.split(os.path.abspath(os.path.expanduser(root)))
        source = open_source(root)
        layouts = {"manifest": (manifest,), "plain": SPLITS, "market": tuple(FOLDERS.values())}
        if manifest != cls.OPTIONS["manifest"]:  # named explicitly, so there is no fallback
            layouts = {"manifest": (manifest,)}
        location = locate(source, layouts, (), cls.HOME)
        if location.layout == "manifest":
            return FileScan(source, location.folder, _read_manifest(source, posixpath.join(location.folder, manifest)))
        folder_names = dict(zip(SPLITS, SPLITS)) if location.layout == "plain" else FOLDERS
        folders = {split: posixpath.join(location.folder, folder) for split, folder in folder_names.items()}
        return FileScan(
            source,
            location.folder,
            {s: entries_of_folder(source, f, camera_optional=True) for s, f in folders.items()},
        )


def _read_manifest(source: Source, path: str) -> dict[str, list[Entry]]:
    """Parse a manifest into the entries of each split."""
    where = source.display_path(path)
    reader = csv.DictReader(io.StringIO(source.read_text(path), newline=""), skipinitialspace=True)
    columns = [(column or "").strip().lower() for column in reader.fieldnames or ()]
    missing = [column for column in ("path", "pid") if column not in columns]
    if missing:
        header = ",".join(columns) or "nothing"
        raise UserError(
            f"{where}: found {header} in the first line, without {' and '.join(missing)}, expected "
            "path,pid[,camid][,split]; add the column"
        )
    reader.fieldnames = columns

    rows, lines = [], []
    for row in reader:
        rows.append({column: (row[column] or "").strip() for column in columns})
        lines.append(f"{where} line {reader.line_num}")
    pids = _parse_column([row["pid"] for row in rows], "pid", lines)
    camids = _parse_column([row.get("camid", "") for row in rows], "camid", lines)

    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    base = posixpath.dirname(path)
    for row, line, pid, camid in zip(rows, lines, pids, camids):
        if pid is None:
            raise UserError(f"{line}: found an empty pid, expected an integer or a name; fill it in")
        name = posixpath.normpath(row["path"].replace("\\", "/"))
        if not name.lower().endswith(IMAGE_SUFFIXES):
            raise UserError(
                f"{line}: path {row['path']!r} is no image; expected a name in {', '.join(IMAGE_SUFFIXES)}; correct it"
            )
        image = posixpath.normpath(posixpath.join(base, name))
        if source.stamp(image) is None:
            raise UserError(
                f"{line}: {source.display_path(image)} does not exist; paths are relative to the manifest; correct the line"
            )
        split = row["split"] if "split" in columns else _SPLIT_OF_FOLDER.get(name.split("/")[0], "")
        if split not in splits:
            split_source = "split" if "split" in columns else "the first folder of path (there is no column split)"
            raise UserError(
                f"{line}: {split_source} is {split or name.split('/')[0]!r}; expected train, query or gallery; correct it"
            )
        splits[split].append(Entry(image, name, pid, NO_CAMERA if camid is None else camid))
    return splits


def _parse_column(values: list[str], column: str, lines: list[str]) -> list[int | None]:
    """Convert a column to integers. Names are numbered in sorted order; empty values become None.

    Args:
        values: values of the column.
        column: name of the column, for error messages.
        lines: file and line of each value, for error messages.

    Raises:
        UserError: the column mixes integers and names.
    """
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
