"""Identities and cameras of a user's own images, from the names of files and folders."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cacenet_jax.data.builders.manifest import parse_column
from cacenet_jax.data.builders.scan import NO_CAMERA, Entry, record_name
from cacenet_jax.data.builders.source import Source
from cacenet_jax.errors import UserError, printable, raise_together

IDENTITY = ("auto", "name", "folder")  # values of the option `identity`
NO_CAMERAS = "none"  # value of the option `camera`
_NAME = re.compile(r"(-?\d+)(?:_c(\d+)|(?=[_.-]))")
_IN_FOLDER = re.compile(r"(?:^|[_/])c(?:am)?(\d+)", re.IGNORECASE)  # below the folder of a person
_LIKE_CAMERA = re.compile(r"(?:^|[_\-. /])c(?:am|amera)?[_-]?\d+", re.IGNORECASE)


class _Image(NamedTuple):
    """Image file: split, path in the source, and name, its path in the folder of the split."""

    split: str
    path: str
    name: str

    @property
    def top(self) -> str:
        """First folder of the name, or an empty string."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    @property
    def match(self) -> re.Match[str] | None:
        """Match of the file name with `<pid>_c<camera>` or `<pid>_`."""
        return _NAME.match(posixpath.basename(self.name))


def entries_of_folders(
    source: Source, folders: Mapping[str, str], identity: str, camera: str, where: str
) -> tuple[dict[str, list[Entry]], list[str]]:
    """Parse the labels of all images in the folders of the splits.

    Args:
        source: source that contains the folders.
        folders: folder of each split; a folder that does not exist has no images.
        identity: "name" takes the identity from the start of the file name, "folder" from the first folder below that of
            the split, and "auto" from the folder if all images lie in folders and no file name has the form
            `<pid>_c<camera>`.
        camera: regular expression with one group that is searched in the name, "none" for no cameras, or an empty
            string for `_c<camera>` behind the identity.
        where: data set, for error messages.

    Returns:
        Entries of each split, including junk (pid -1), and notes for the user.

    Raises:
        UserError: an option is invalid, or a name or camera does not parse.
    """
    if identity not in IDENTITY:
        raise UserError(
            f"option identity: found {identity!r}, expected one of {', '.join(IDENTITY)}; choose one of them"
        )
    images = [
        _Image(split, path, record_name(folder, path))
        for split, folder in folders.items()
        for path in source.images(folder)
    ]
    by_folder, notes = _identity_source(images, identity, where)
    lines = [source.display_path(image.path) for image in images]
    pids = _folder_pids(images, lines) if by_folder else _name_pids(images, lines)
    camids = _cameras(images, by_folder, camera, lines, where)
    splits: dict[str, list[Entry]] = {split: [] for split in folders}
    for image, pid, camid in zip(images, pids, camids):
        splits[image.split].append(Entry(image.path, image.name, pid, camid))
    return splits, notes


def _identity_source(images: Sequence[_Image], identity: str, where: str) -> tuple[bool, list[str]]:
    """Return True if the identities are the names of folders, and notes for the user."""
    nested = [image for image in images if image.top]
    if identity != "auto" or not nested:
        return identity == "folder", []

    def differs(image: _Image) -> bool:
        return image.match is None or not image.top.isdecimal() or int(image.top) != int(image.match[1])

    different = [image for image in nested if differs(image)]
    if not different:
        return False, []
    first = different[0]
    example = printable(f"{first.split}/{first.name}")
    all_named = all(image.match is not None and image.match[2] for image in nested)
    if len(nested) == len(images) and not all_named:
        return True, [
            f"{where}: identities are the names of folders, as in {example}; set config.data.options.identity=name if "
            "they are in the names of the files"
        ]
    if first.top.isdecimal() or first.match is None:
        raise UserError(
            f"{where}: found the identity in the name of the folder or of the file ({example}), expected one of them; "
            "set config.data.options.identity to folder or to name"
        )
    return False, [
        f"{where}: identities are in the names of the files, as in {example}; set config.data.options.identity=folder if "
        "they are the names of the folders"
    ]


def _name_pids(images: Sequence[_Image], lines: Sequence[str]) -> list[int]:
    matches = [image.match for image in images]
    raise_together(
        [
            f"{line}: found no identity in the name, expected <pid>_….jpg or <pid>_c<camera>….jpg, or a folder for each "
            "identity; rename or remove the file"
            for line, match in zip(lines, matches)
            if match is None
        ]
    )
    return [int(match[1]) for match in matches if match is not None]


def _folder_pids(images: Sequence[_Image], lines: Sequence[str]) -> list[int]:
    raise_together(
        [
            f"{line}: found no folder of an identity, expected <split>/<identity>/….jpg; move the file to one"
            for line, image in zip(lines, images)
            if not image.top
        ]
    )
    return [pid for pid in parse_column([image.top for image in images], "identity", lines) if pid is not None]


def _cameras(images: Sequence[_Image], by_folder: bool, camera: str, lines: Sequence[str], where: str) -> list[int]:
    """Return the camera of each image, -1 if the names have none."""
    if camera == NO_CAMERAS:
        return [NO_CAMERA] * len(images)
    names = [image.name.removeprefix(f"{image.top}/") if by_folder else image.name for image in images]
    if camera:
        return _by_expression(names, camera, lines)
    if by_folder:
        labels = [match[1] if (match := _IN_FOLDER.search(name)) else None for name in names]
    else:
        labels = [image.match[2] if image.match else None for image in images]
    unclear = [name for name, label in zip(names, labels) if label is None and _LIKE_CAMERA.search(name)]
    if unclear:
        raise UserError(
            f"{where}: found {len(unclear):,} names with a camera in a place that is not understood, first "
            f"{printable(unclear[0])}, expected <pid>_c<camera>….jpg; rename the files, or set "
            r"config.data.options.camera to a regular expression for it, such as 'cam(\d+)', or to none"
        )
    return [NO_CAMERA if label is None else int(label) for label in labels]


def _by_expression(names: Sequence[str], camera: str, lines: Sequence[str]) -> list[int]:
    try:
        expression = re.compile(camera)
    except re.error as error:
        raise UserError(f"option camera: {camera!r} is no regular expression ({error}); correct it") from error
    if expression.groups != 1:
        raise UserError(
            f"option camera: found {expression.groups} groups in {camera!r}, expected one, such as 'cam(\\d+)'; correct it"
        )
    matches = [expression.search(name) for name in names]
    raise_together(
        [
            f"{line}: found no camera that fits {camera!r}, expected one in each name; correct config.data.options.camera"
            for line, match in zip(lines, matches)
            if match is None or not match[1]
        ]
    )
    values = parse_column([match[1] for match in matches if match is not None], "camera", lines)
    return [value for value in values if value is not None]
