"""Image sources: a folder, or a zip that is read by random access without unpacking."""

import abc
import hashlib
import os
import posixpath
import stat
import zipfile
from collections.abc import Iterable

from cacenet_jax.data.image_files import IMAGE_SUFFIXES, MAX_BYTES, OTHER_IMAGE_SUFFIXES, ImageError, read_file
from cacenet_jax.data.table import decode_text
from cacenet_jax.errors import UserError, printable

_MAX_NAME = 4096  # characters of a member of a zip, as in a path on disk


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
    def file_id(self, path: str) -> object:
        """Return a value that is equal for two paths of the same file, such as a file and a link to it."""

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        Raises:
            UserError: the file cannot be read.
        """

    @abc.abstractmethod
    def display_path(self, path: str) -> str:
        """Return `path` as displayed in error messages, in one line."""

    def local_path(self, path: str) -> str:
        """Return the path on disk of a file.

        Raises:
            UserError: it is inside an archive.
        """
        raise UserError(f"{self.display_path(path)}: found a video in an archive, expected one on disk; unpack it")

    def images(self, folder: str) -> list[str]:
        """Return the sorted image files below `folder`, ignoring other files (Thumbs.db, readme.txt)."""
        return [path for path in self.files(folder) if path.lower().endswith(IMAGE_SUFFIXES)]

    def other_images(self, folder: str) -> dict[str, list[str]]:
        """Return the files below `folder` whose suffix is that of an image that is not read, by suffix."""
        by_suffix: dict[str, list[str]] = {}
        for path in self.files(folder):
            if (suffix := posixpath.splitext(path)[1].lower()) in OTHER_IMAGE_SUFFIXES:
                by_suffix.setdefault(suffix, []).append(path)
        return by_suffix

    def read_text(self, path: str) -> str:
        """Read a text file in UTF-8, or in UTF-16 if it has a byte order mark.

        Raises:
            UserError: the file cannot be read or has another encoding.
        """
        try:
            return decode_text(self.read(path))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.display_path(path)}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


class FolderSource(Source):
    """Folder on disk."""

    def __init__(self, root: str, is_confined: bool = True):
        """Remember the folder.

        Args:
            root: absolute path of the folder.
            is_confined: False to allow paths outside the folder.
        """
        super().__init__(root)
        self._is_confined = is_confined

    def _full(self, path: str) -> str:
        full = os.path.join(self.root, path)
        if self._is_confined and os.path.commonpath([self.root, os.path.normpath(full)]) != self.root:
            raise UserError(
                f"{self.root}: found the path {path[:200]!r}, expected one inside this folder; set the data root to one "
                "above all images"
            )
        return full

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
        top = self._full(folder)
        # Folders from the top to each folder that is still to be visited. A link to one of them would lead in a circle.
        above = {top: {_file_id(top)}}
        for parent, subfolders, names in os.walk(top, followlinks=True):
            identifiers = {name: _file_id(os.path.join(parent, name)) for name in subfolders if _visible(name)}
            subfolders[:] = [name for name, identifier in identifiers.items() if identifier not in above[parent]]
            for name in subfolders:
                above[os.path.join(parent, name)] = above[parent] | {identifiers[name]}
            del above[parent]
            prefix = os.path.relpath(parent, self.root).replace(os.sep, "/")
            paths += [posixpath.normpath(posixpath.join(prefix, name)) for name in names if _visible(name)]
        return sorted(paths)

    def exists(self, path: str) -> bool:
        """Return True if `path` is a file or a folder."""
        return os.path.exists(self._full(path))

    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Return the size and modification time, or None if there is no such file."""
        try:
            status = os.stat(self._full(path))
        except (OSError, ValueError):  # ValueError: a null character in the path
            return None
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def file_id(self, path: str) -> object:
        """Return the device and inode number."""
        return _file_id(self._full(path))

    def read(self, path: str) -> bytes:
        """Return the contents of a file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return read_file(self._full(path))
        except ImageError as error:
            raise UserError(f"{self.display_path(path)}: {error}") from error
        except OSError as error:
            raise UserError(
                f"{self.display_path(path)}: cannot be read ({error.strerror}); check that it exists and its permissions"
            ) from error

    def local_path(self, path: str) -> str:
        """Return the path on disk of a file."""
        return self._full(path)

    def display_path(self, path: str) -> str:
        """Return the path on disk."""
        return printable(os.path.normpath(self._full(path)))


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

    def file_id(self, path: str) -> object:
        """Return the path inside the zip."""
        return posixpath.normpath(path)

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
        return printable(f"{self.root}!{path}" if path else self.root)


def open_source(root: str, is_confined: bool = True) -> Source:
    """Open a folder or a zip.

    Args:
        root: path of the folder or zip.
        is_confined: False to allow paths outside the folder, in a manifest that the user names.

    Returns:
        The source. A missing root is reported later, by `locate`.

    Raises:
        UserError: `root` is a file but not a zip.
    """
    root = os.path.abspath(os.path.expanduser(root))
    return ZipSource(root) if os.path.isfile(root) else FolderSource(root, is_confined)


def fingerprint(parts: Iterable[object]) -> str:
    """Return a hash of plain values, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()[:16]


def _file_id(path: str) -> object:
    """Return the device and inode number, or the path if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    return status.st_dev, status.st_ino


def _inside(name: str, root: str) -> str:
    """Return the path of a member of a zip, and raise UserError for one outside the archive."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if len(name) > _MAX_NAME:
        raise UserError(
            f"{root}: found a member whose name has {len(name):,} characters, expected at most {_MAX_NAME:,}; rename it"
        )
    if path.startswith("/") or path.split("/")[0] in ("..", ".") or path[1:2] == ":":
        raise UserError(
            f"{root}: found the member {name[:120]!r}, expected names inside the archive; zip the data set's folder again"
        )
    return path


def _check_member(info: zipfile.ZipInfo, where: str) -> None:
    """Raise UserError for a member that is a link, or too large for an image or a manifest."""
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{where}: found a symbolic link, expected a file; zip the files that the links name")
    if info.file_size > MAX_BYTES:
        size = f"{info.file_size / 2**20:,.0f} MiB"
        raise UserError(f"{where}: found a member of {size}, expected at most {MAX_BYTES >> 20} MiB; leave it out")


def _visible(path: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _parents(path: str) -> Iterable[str]:
    while path:
        path = posixpath.dirname(path)
        yield path
