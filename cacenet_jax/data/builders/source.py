"""Image sources: a folder, or a zip that is read by random access without unpacking."""

import abc
import hashlib
import io
import itertools
import os
import posixpath
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from cacenet_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_SEARCH_DEPTH = 2  # a data set may be in the root or up to two folders below it
_MAX_BYTES = 256 << 20  # of one member of a zip; images and manifests are far smaller


class Source(abc.ABC):
    """File tree. Paths use '/' and are relative to `root`."""

    def __init__(self, root: str):
        self.root = root

    @abc.abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Return the sorted paths of the folders directly inside `folder`."""

    @abc.abstractmethod
    def files(self, folder: str) -> list[str]:
        """Return the sorted paths of all files below `folder`, except hidden ones."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool:
        """Return True if `path` is a file or a folder."""

    @abc.abstractmethod
    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Return integers that change when the file changes, or None if there is no such file."""

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        Raises:
            UserError: the file cannot be read.
        """

    @abc.abstractmethod
    def display_path(self, path: str) -> str:
        """Return `path` as displayed in error messages."""

    def images(self, folder: str) -> list[str]:
        """Return the sorted image files below `folder`, ignoring other files (Thumbs.db, readme.txt)."""
        return [path for path in self.files(folder) if path.lower().endswith(IMAGE_SUFFIXES)]

    def read_text(self, path: str) -> str:
        """Read a UTF-8 text file, with or without a byte order mark.

        Raises:
            UserError: the file cannot be read or is not UTF-8.
        """
        try:
            return self.read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.display_path(path)}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


class FolderSource(Source):
    """Folder on disk."""

    def _full(self, path: str) -> str:
        if os.path.isabs(path) or posixpath.normpath(path).split("/")[0] == "..":
            raise UserError(
                f"{self.root}: found the path {path[:200]!r}, expected one inside this folder; set the data root to one "
                "above all images and write paths relative to it"
            )
        return os.path.join(self.root, path)

    def folders(self, folder: str) -> list[str]:
        """Return the sorted paths of the folders directly inside `folder`."""
        try:
            with os.scandir(self._full(folder)) as items:
                names = [item.name for item in items if _visible(item.name) and item.is_dir()]
        except (FileNotFoundError, PermissionError):  # missing root, or an unreadable folder next to the data set
            return []
        return sorted(posixpath.join(folder, name) for name in names)

    def files(self, folder: str) -> list[str]:
        """Return the sorted paths of all files below `folder`, except hidden ones."""
        paths = []
        for parent, subfolders, names in os.walk(self._full(folder), followlinks=True):
            subfolders[:] = [name for name in subfolders if _visible(name)]
            prefix = os.path.relpath(parent, self.root).replace(os.sep, "/")
            paths += [posixpath.normpath(posixpath.join(prefix, name)) for name in names if _visible(name)]
        return sorted(paths)

    def exists(self, path: str) -> bool:
        """Return True if `path` is a file or a folder."""
        return os.path.exists(self._full(path))

    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Return the size and modification time, or None if there is no such file."""
        full = self._full(path)
        if not os.path.isfile(full):
            return None
        status = os.stat(full)
        return status.st_size, status.st_mtime_ns

    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open(self._full(path), "rb") as file:
                return file.read()
        except OSError as error:
            raise UserError(
                f"{self.display_path(path)}: cannot be read ({error.strerror}); check that it exists and its permissions"
            ) from error

    def display_path(self, path: str) -> str:
        """Return the path on disk."""
        return os.path.normpath(self._full(path))


class ZipSource(Source):
    """Zip archive whose members are read individually."""

    def __init__(self, root: str):
        super().__init__(root)
        try:
            self._zip = zipfile.ZipFile(root)
            members = [info for info in self._zip.infolist() if not info.is_dir()]
        except (
            Exception
        ) as error:  # BadZipFile, OSError, struct.error, NotImplementedError, IndexError (an empty name), ...
            raise UserError(
                f"{root}: not a zip archive ({error}); expected the data set's folder or a complete zip of it"
            ) from error
        self._files = {_inside(info.filename, root): info for info in members}
        self._folders = {parent for path in self._files for parent in _parents(path)}

    def folders(self, folder: str) -> list[str]:
        """Return the sorted paths of the folders directly inside `folder`."""
        return sorted(path for path in self._folders if path and posixpath.dirname(path) == folder and _visible(path))

    def files(self, folder: str) -> list[str]:
        """Return the sorted paths of all files below `folder`, except hidden ones."""
        prefix = folder + "/" if folder else ""
        return sorted(path for path in self._files if path.startswith(prefix) and _visible(path[len(prefix) :]))

    def exists(self, path: str) -> bool:
        """Return True if `path` is a file or a folder."""
        return path in self._files or path in self._folders

    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Return the size and checksum, or None if there is no such file."""
        info = self._files.get(path)
        return None if info is None else (info.file_size, info.CRC)

    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            _check_member(self._files[path], self.display_path(path))
            return self._zip.read(self._files[path])
        except UserError:
            raise
        except KeyError as error:
            raise UserError(f"{self.display_path(path)}: not in the zip; add the file to it") from error
        except Exception as error:  # zlib.error, BadZipFile (checksum), RuntimeError (password), NotImplementedError
            raise UserError(
                f"{self.display_path(path)}: cannot be unzipped ({error}); get a complete, unencrypted zip"
            ) from error

    def display_path(self, path: str) -> str:
        """Return the path of the zip and the path inside it."""
        return f"{self.root}!{path}" if path else self.root


def open_source(root: str) -> Source:
    """Open a folder or a zip.

    Args:
        root: path of the folder or zip.

    Returns:
        The source. A missing root is reported later, by `locate`.

    Raises:
        UserError: `root` is a file but not a zip.
    """
    root = os.path.abspath(os.path.expanduser(root))
    return ZipSource(root) if os.path.isfile(root) else FolderSource(root)


class DatasetLocation(NamedTuple):
    """Location of a data set: name of the layout and folder in the source."""

    layout: str
    folder: str


def locate(
    source: Source, layouts: Mapping[str, Sequence[str]], known_names: Iterable[str], hint: str
) -> DatasetLocation:
    """Find the folder of a data set, which is the root or a folder up to two levels below it.

    Args:
        source: source to search.
        layouts: required files and folders of each layout; the first layout that matches is used.
        known_names: usual names of the data set folder, used to choose between several matches.
        hint: where to obtain the data set; appended to the error message.

    Returns:
        The layout and the folder.

    Raises:
        UserError: no folder matches, or several match and their names do not single one out.
    """
    level = [""]
    closest: tuple[int, str, list[str]] = (0, "", [])
    for depth in range(_SEARCH_DEPTH + 1):
        matches = []
        for folder, (layout, needed) in itertools.product(level, layouts.items()):
            missing = [item for item in needed if not source.exists(posixpath.join(folder, item))]
            if not missing:
                matches.append(DatasetLocation(layout, folder))
            elif len(needed) - len(missing) > closest[0]:
                closest = (len(needed) - len(missing), folder, missing)
        by_folder = {place.folder: place for place in reversed(matches)}  # keeps the first layout of each folder
        if len(by_folder) > 1:
            named = {f: p for f, p in by_folder.items() if _same_name(posixpath.basename(f), known_names)}
            if len(named) != 1:
                listed = ", ".join(source.display_path(folder) for folder in sorted(by_folder))
                raise UserError(f"{source.root}: several folders fit ({listed}); set the data root to one of them")
            by_folder = named
        if by_folder:
            return next(iter(by_folder.values()))
        if depth < _SEARCH_DEPTH:
            level = [child for folder in level for child in source.folders(folder)]
    expected = " or ".join("{" + ", ".join(needed) + "}" for needed in layouts.values())
    near = f" ({source.display_path(closest[1])} lacks {', '.join(closest[2])})" if closest[0] else ""
    if not os.path.exists(source.root):
        near = " (it does not exist)"
    raise UserError(
        f"{source.root}: no data set found{near}, expected {expected} there or up to two folders below; {hint}"
    )


def fingerprint(parts: Iterable[object]) -> str:
    """Return a hash of plain values, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()[:16]


def check_image(data: bytes, where: str) -> None:
    """Check that an image decodes completely. Pillow is used because, unlike bare libjpeg, it reports truncation.

    Args:
        data: encoded image.
        where: path of the image, for the error message.

    Raises:
        UserError: the file is empty, truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, …
        reason = "not an image that can be read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(
            f"{where}: broken image of {len(data)} bytes ({reason}); replace it with a complete copy"
        ) from error


def _inside(name: str, root: str) -> str:
    """Return the path of a member of a zip, and raise UserError for one outside the archive."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith("/") or path.split("/")[0] in ("..", ".") or path[1:2] == ":":
        raise UserError(
            f"{root}: found the member {name[:120]!r}, expected names inside the archive; zip the data set's folder again"
        )
    return path


def _check_member(info: zipfile.ZipInfo, where: str) -> None:
    """Raise UserError for a member that is a link, or too large for an image or a manifest."""
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{where}: found a symbolic link, expected a file; zip the files that the links name")
    if info.file_size > _MAX_BYTES:
        size = f"{info.file_size / 2**20:,.0f} MiB"
        raise UserError(f"{where}: found a member of {size}, expected at most {_MAX_BYTES >> 20} MiB; leave it out")


def _visible(path: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _parents(path: str) -> Iterable[str]:
    while path:
        path = posixpath.dirname(path)
        yield path


def _same_name(name: str, known_names: Iterable[str]) -> bool:
    def plain(text: str) -> str:
        return "".join(char for char in text.lower() if char.isalnum())

    return plain(name) in {plain(known) for known in known_names}
