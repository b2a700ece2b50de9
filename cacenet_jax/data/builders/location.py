"""Search for the folder of a data set below the data root."""

import itertools
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cacenet_jax.data.builders.source import Source
from cacenet_jax.errors import UserError

_SEARCH_DEPTH = 2  # a data set may be in the root or up to two folders below it


class DatasetLocation(NamedTuple):
    """Location of a data set: name of the layout and folder in the source."""

    layout: str
    folder: str


def locate(
    source: Source,
    layouts: Mapping[str, Sequence[str]],
    known_names: Iterable[str],
    hint: str,
    partial: Mapping[str, Sequence[str]] | None = None,
) -> DatasetLocation:
    """Find the folder of a data set, which is the root or a folder up to two levels below it.

    Args:
        source: source to search.
        layouts: required files and folders of each layout; the first layout that matches is used.
        known_names: usual names of the data set folder, used to choose between several matches.
        hint: where to obtain the data set; appended to the error message.
        partial: layouts of a part of the data set, such as a test set alone, tried where no complete one matches. They
            match if nothing else of a complete layout exists, which would be an incomplete copy.

    Returns:
        The layout and the folder.

    Raises:
        UserError: no folder matches, or several match and their names do not single one out.
    """
    closest: tuple[int, str, list[str]] = (0, "", [])
    names = {item for needed in layouts.values() for item in needed}
    for accepted in (layouts, partial or {}):
        level = [""]
        for depth in range(_SEARCH_DEPTH + 1):
            matches = []
            for folder, (layout, needed) in itertools.product(level, accepted.items()):
                missing = [item for item in needed if not source.exists(posixpath.join(folder, item))]
                others = names.difference(needed) if accepted is partial else ()
                if not missing and not any(source.exists(posixpath.join(folder, item)) for item in others):
                    matches.append(DatasetLocation(layout, folder))
                elif accepted is layouts and len(needed) - len(missing) > closest[0]:
                    closest = (len(needed) - len(missing), folder, missing)
            if matches:
                return _choose(source, matches, known_names)
            if depth < _SEARCH_DEPTH:
                level = [child for folder in level for child in source.folders(folder)]
    expected = " or ".join("{" + ", ".join(needed) + "}" for needed in layouts.values())
    near = f" ({source.display_path(closest[1])} lacks {', '.join(closest[2])})" if closest[0] else ""
    root = source.display_path("")
    if not os.path.exists(source.root):
        near = " (it does not exist)"
    elif archives := sorted(path for path in _listed(source.root) if path.lower().endswith(".zip")):
        listed = " or ".join(source.display_path(path) for path in archives[:3])
        raise UserError(
            f"{root}: no data set found{near}, but {len(archives)} zip; if it is the data set's, set "
            f"config.data.root={listed}"
        )
    raise UserError(f"{root}: no data set found{near}, expected {expected} there or up to two folders below; {hint}")


def _choose(source: Source, matches: Sequence[DatasetLocation], known_names: Iterable[str]) -> DatasetLocation:
    """Return the only match or, if several folders match, the one named after the data set.

    Raises:
        UserError: several folders match, and not exactly one of them is named after the data set.
    """
    by_folder = {place.folder: place for place in reversed(matches)}  # keeps the first layout of each folder
    if len(by_folder) == 1:
        return next(iter(by_folder.values()))
    named = [place for folder, place in by_folder.items() if _same_name(posixpath.basename(folder), known_names)]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(source.display_path(folder) for folder in sorted(by_folder))
    raise UserError(f"{source.display_path('')}: several folders fit ({listed}); set the data root to one of them")


def _listed(root: str) -> list[str]:
    try:
        return os.listdir(root)
    except OSError:  # a file, or no permission
        return []


def _same_name(name: str, known_names: Iterable[str]) -> bool:
    def plain(text: str) -> str:
        return "".join(char for char in text.lower() if char.isalnum())

    return plain(name) in {plain(known) for known in known_names}
