"""Market-1501 layout, also used by other data sets: three folders, with labels in the file names."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cacenet_jax.data.builders.base import NO_CAMERA, Entry, FileScan, ReidBuilder, Scan, record_name
from cacenet_jax.data.builders.source import Source, locate, open_source
from cacenet_jax.errors import UserError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_WITH_CAMERA = re.compile(r"(-?\d+)_c(\d+)")
_CAMERA_OPTIONAL = re.compile(r"(-?\d+)(?:_c(\d+)|(?=[_.-]))")


def entries_of_folder(source: Source, folder: str, *, camera_optional: bool = False) -> list[Entry]:
    """Parse identities and cameras from the file names in a folder.

    Args:
        source: source that contains the folder.
        folder: path of the folder; subfolders are included.
        camera_optional: if True, accept names without a camera (camid -1).

    Returns:
        One entry per image, including junk (pid -1).

    Raises:
        UserError: a file name does not parse.
    """
    pattern = _CAMERA_OPTIONAL if camera_optional else _WITH_CAMERA
    entries = []
    for path in source.images(folder):
        match = pattern.match(posixpath.basename(path))
        if match is None:
            expected = (
                "<pid>_….jpg or <pid>_c<camera>….jpg"
                if camera_optional
                else "<pid>_c<camera>…, as in 0002_c1s1_000451_03.jpg"
            )
            raise UserError(
                f"{source.display_path(path)}: found no identity in the name, expected {expected}; rename or remove the file"
            )
        camid = NO_CAMERA if match[2] is None else int(match[2])
        entries.append(Entry(path, record_name(folder, path), int(match[1]), camid))
    return entries


class MarketStyleBuilder(ReidBuilder, skip_registration=True):
    """Base class for builders of benchmarks in the Market-1501 layout."""

    COUNTS: ClassVar[Mapping[str, int]] = {}  # images per split, excluding junk
    FOLDER_NAMES: ClassVar[tuple[str, ...]] = ()
    OPTIONS: ClassVar[Mapping[str, Any]] = {"check_counts": True}

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Scan the three folders.

        Raises:
            UserError: a folder is missing or a file name does not parse.
        """
        source = open_source(root)
        location = locate(source, {"market": tuple(FOLDERS.values())}, cls.FOLDER_NAMES, cls.HOME)
        folders = {split: posixpath.join(location.folder, folder) for split, folder in FOLDERS.items()}
        return FileScan(
            source,
            location.folder,
            {split: entries_of_folder(source, folder) for split, folder in folders.items()},
        )

    @classmethod
    def expected_counts(cls, options: Mapping[str, Any]) -> Mapping[str, int] | None:
        """Return the published counts, or None if check_counts is off."""
        return cls.COUNTS if options["check_counts"] else None
