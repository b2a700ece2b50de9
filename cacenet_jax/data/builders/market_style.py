"""Market-1501 layout, also used by other data sets: three folders, with labels in the file names."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cacenet_jax.data.builders.base import Entry, FileScan, ReidBuilder, Scan, record_name
from cacenet_jax.data.builders.location import locate
from cacenet_jax.data.builders.scan import unread_images
from cacenet_jax.data.builders.source import Source, open_source
from cacenet_jax.errors import raise_together

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PARTIAL = {"test": (FOLDERS["query"], FOLDERS["gallery"]), "train": (FOLDERS["train"],)}
_NAME = re.compile(r"(-?\d+)_c(\d+)")


def entries_of_folder(source: Source, folder: str) -> list[Entry]:
    """Parse identities and cameras from the file names in a folder.

    Args:
        source: source that contains the folder.
        folder: path of the folder; subfolders are included.

    Returns:
        One entry per image, including junk (pid -1).

    Raises:
        UserError: a file name does not parse.
    """
    entries, mistakes = [], []
    for path in source.images(folder):
        match = _NAME.match(posixpath.basename(path))
        if match is None:
            mistakes.append(
                f"{source.display_path(path)}: found no identity in the name, expected <pid>_c<camera>…, as in "
                "0002_c1s1_000451_03.jpg; rename or remove the file"
            )
        else:
            entries.append(Entry(path, record_name(folder, path), int(match[1]), int(match[2])))
    raise_together(mistakes)
    return entries


class MarketStyleBuilder(ReidBuilder, skip_registration=True):
    """Base class for builders of benchmarks in the Market-1501 layout."""

    COUNTS: ClassVar[Mapping[str, int]] = {}  # images per split, excluding junk
    FOLDER_NAMES: ClassVar[tuple[str, ...]] = ()
    OPTIONS: ClassVar[Mapping[str, Any]] = {"check_counts": True}

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Scan the three folders, or those of the training or the test set alone.

        Raises:
            UserError: folders are missing or a file name does not parse.
        """
        source = open_source(root)
        location = locate(source, {"market": tuple(FOLDERS.values())}, cls.FOLDER_NAMES, cls.HOME, PARTIAL)
        folders = {split: posixpath.join(location.folder, folder) for split, folder in FOLDERS.items()}
        return FileScan(
            source,
            location.folder,
            {split: entries_of_folder(source, folder) for split, folder in folders.items()},
            notes=unread_images(source, folders.values()),
        )

    @classmethod
    def expected_counts(cls, options: Mapping[str, Any]) -> Mapping[str, int] | None:
        """Return the published counts, or None if check_counts is off."""
        return cls.COUNTS if options["check_counts"] else None
