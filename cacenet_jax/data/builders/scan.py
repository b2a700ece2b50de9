"""Scans of a data set's files: labelled entries, checks of labels and files, and the records in order.

A record is {image: encoded bytes, pid: int, camid: int, name: str, parts: PNG bytes, empty if unknown}. `image` is the
file as it is, or a PNG of its pixels if it is not an ordinary JPEG, PNG or WebP (`cacenet_jax.data.image_files`). `pid`
is the data set's own identity label. `camid` is its own camera number, usually counted from 1, or -1 if unknown.
"""

import abc
import hashlib
import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from cacenet_jax.data.builders.source import Source, fingerprint
from cacenet_jax.data.image_files import IMAGE_SUFFIXES, ImageError, ordinary, png, rgb
from cacenet_jax.data.photographs import cut_out, read_frame
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError, printable, raise_together

SPLITS = ("train", "query", "gallery")
TEST_SPLITS = ("query", "gallery")
ON_ERROR = ("raise", "skip")  # values of config.data.on_error
NO_CAMERA = -1
_MAX_INT64 = 2**63 - 1


class Entry(NamedTuple):
    """Labelled image.

    Attributes:
        path: path of its file in the source.
        name: name in the split; that of a crop or a frame has its box or number.
        pid: identity.
        camid: camera.
        box: (x1, y1, x2, y2) in pixels of a crop, or None for the whole image.
        frame: number of a frame, if the file is a video.
    """

    path: str
    name: str
    pid: int
    camid: int
    box: tuple[int, int, int, int] | None = None
    frame: int | None = None


class Scan(abc.ABC):
    """Contents of a data set, determined without decoding images.

    Attributes:
        origin: source of the data, for error messages.
        fingerprint: name of the prepared copy; changes with any file, label or option that affects the records.
        notes: lines for the user about labels and about files that are not read.
        report: values for metadata.json. `examples` adds to its lists: "skipped" has [SPLIT/NAME, reason] for each image
            that was left out, and "copies" the names of two equal images of different identities.
    """

    origin: str
    fingerprint: str
    notes: Sequence[str] = ()
    report: Mapping[str, Any] = MappingProxyType({})

    @abc.abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""

    @abc.abstractmethod
    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield records start .. stop-1 of a split."""

    def require(self, needs: Sequence[str], on_error: str) -> None:
        """Check the labels of the splits in `needs`, and set the behaviour of `examples` for broken images.

        Args:
            needs: splits that the caller uses.
            on_error: "raise" to stop at a broken image, "skip" to leave it out.

        Raises:
            UserError: the labels are not as expected.
        """
        del needs, on_error


class FileScan(Scan):
    """Scan of image files. Records are sorted by name, and files are read and checked during iteration."""

    def __init__(
        self,
        source: Source,
        folder: str,
        splits: Mapping[str, Sequence[Entry]],
        *,
        notes: Sequence[str] = (),
        report: Mapping[str, Any] | None = None,
    ):
        """Sort and check the entries.

        Args:
            source: source that contains the files.
            folder: folder of the data set within `source`, for error messages.
            splits: entries of train, query and gallery; entries with a negative pid (junk) are dropped.
            notes: lines for the user.
            report: values for metadata.json.

        Raises:
            UserError: a name occurs twice in a split, or a file has two identities.
        """
        self._source = source
        numbered, renumbered = _fit_int64(splits)
        self._splits = {
            split: sorted((e for e in numbered.get(split, ()) if e.pid >= 0), key=lambda e: e.name) for split in SPLITS
        }
        self._on_error = ON_ERROR[0]
        self._contents: dict[tuple[bool, bytes], Entry] = {}
        self.origin = source.display_path(folder)
        self.notes = [*notes, *renumbered]
        self._skipped: list[tuple[str, str]] = []
        self._copies: list[tuple[str, str]] = []
        self.report = {**(report or {}), "skipped": self._skipped, "copies": self._copies}
        total = sum(map(len, self._splits.values()))
        entries = track(self._labelled(), f"looking at {self.origin}", total, "files")
        self._stamps = {entry.path: source.stamp(entry.path) for _, entry in entries}
        self.fingerprint = fingerprint(
            (split, entry.name, entry.pid, entry.camid, *(self._stamps[entry.path] or ()))  # a name has box and frame
            for split, entry in self._labelled()
        )
        self._check()

    def _labelled(self) -> Iterator[tuple[str, Entry]]:
        for split, entries in self._splits.items():
            for entry in entries:
                yield split, entry

    def _check(self) -> None:
        mistakes = []
        for split, entries in self._splits.items():
            for first, second in itertools.pairwise(entries):
                if first.name == second.name:
                    path = self._source.display_path(second.path)
                    mistakes.append(f"{path}: found twice in split {split}, expected once; remove one of the two")
        raise_together(mistakes)
        seen: dict[object, Entry] = {}
        for _, entry in self._labelled():
            first = seen.setdefault((self._source.file_id(entry.path), entry.box, entry.frame), entry)
            if first.pid != entry.pid:
                same = "" if first.path == entry.path else f" (the same file as {printable(first.name)})"
                mistakes.append(
                    f"{self._source.display_path(entry.path)}{same}: found under the identities {first.pid} and "
                    f"{entry.pid}, expected one; remove one of the two"
                )
        raise_together(mistakes)

    def require(self, needs: Sequence[str], on_error: str) -> None:
        """Check that the files exist and that train, if needed, has two identities.

        Raises:
            UserError: they do not, or it has one.
        """
        self._on_error = on_error
        if on_error == "raise":
            missing = sorted({path for path, stamp in self._stamps.items() if stamp is None})
            raise_together(
                [
                    f"{self._source.display_path(path)}: listed, but no such file; add it or remove its line or link"
                    for path in missing
                ]
            )
        identities = {entry.pid for entry in self._splits["train"]}
        if "train" in needs and len(identities) == 1:
            only = next(iter(identities))
            raise UserError(
                f"{self.origin}: split train has a single identity (pid {only}), expected at least two to train "
                "on; add images of others"
            )

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""
        return {split: len(entries) for split, entries in self._splits.items()}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield records start .. stop-1 of a split, without the broken ones if they are to be skipped.

        Raises:
            UserError: an image file is broken, or all of them are.
        """
        entries = self._splits[split]
        for entry in entries[start:stop]:
            where = self._source.display_path(entry.path)
            try:
                content, image = self._read(entry)
            except (ImageError, UserError) as error:
                message = str(error) if isinstance(error, UserError) else f"{where}: {error}"
                if self._on_error == "raise":
                    raise UserError(f"{message}, or leave broken images out with config.data.on_error=skip") from error
                self._skipped.append((f"{split}/{entry.name}", message.removeprefix(f"{where}: ")))
                continue
            self._compare(split, entry, content)
            yield {"image": image, "pid": entry.pid, "camid": entry.camid, "name": entry.name, "parts": b""}
        if (
            entries
            and stop == len(entries)
            and sum(name.startswith(f"{split}/") for name, _ in self._skipped) == len(entries)
        ):
            name, reason = self._skipped[-1]
            raise UserError(
                f"{self.origin}: all {len(entries)} images of split {split} are broken ({printable(name)}: {reason})"
            )

    def _read(self, entry: Entry) -> tuple[bytes, bytes]:
        """Return what tells equal images, and the encoded image of the record."""
        if entry.box is None and entry.frame is None:
            content = self._source.read(entry.path)
            return content, ordinary(content)
        if entry.frame is None:
            pixels = rgb(self._source.read(entry.path))
        else:
            pixels = read_frame(self._source.local_path(entry.path), entry.frame)
        image = png(cut_out(pixels, entry.box))
        return image, image

    def _compare(self, split: str, entry: Entry, content: bytes) -> None:
        """Note images with equal contents and different identities. Train may number identities separately."""
        key = (split in TEST_SPLITS, hashlib.blake2b(content, digest_size=16).digest())
        first = self._contents.setdefault(key, entry)
        if first.pid != entry.pid:
            self._copies.append((first.name, entry.name))


def _fit_int64(splits: Mapping[str, Sequence[Entry]]) -> tuple[dict[str, list[Entry]], list[str]]:
    """Number identities or cameras in order if a label does not fit into 64 bits; return the entries and notes."""
    entries = [entry for entries in splits.values() for entry in entries]
    pids, pid_notes = _numbers({entry.pid for entry in entries}, "identities")
    camids, camid_notes = _numbers({entry.camid for entry in entries}, "cameras")
    numbered = {
        split: [entry._replace(pid=pids[entry.pid], camid=camids[entry.camid]) for entry in entries]
        for split, entries in splits.items()
    }
    return numbered, pid_notes + camid_notes


def _numbers(labels: set[int], title: str) -> tuple[dict[int, int], list[str]]:
    """Return the number of each label, which is itself unless one does not fit, and notes. Negative ones become -1."""
    if all(abs(label) <= _MAX_INT64 for label in labels):
        return {label: label for label in labels}, []
    known = sorted(label for label in labels if label >= 0)
    numbers = {label: number for number, label in enumerate(known)} | {label: -1 for label in labels if label < 0}
    return numbers, [
        f"{title} such as {known[-1] if known else min(labels)} have too many digits; numbered from 0 in order"
    ]


def unread_images(source: Source, folders: Iterable[str]) -> list[str]:
    """Return a note for each folder with images in formats that are not read."""
    notes = []
    for folder in folders:
        others = source.other_images(folder)
        if not others:
            continue
        count = sum(map(len, others.values()))
        kinds = ", ".join(f"{len(paths):,} {suffix}" for suffix, paths in sorted(others.items()))
        first = source.display_path(next(iter(others.values()))[0])
        remedy = "rename .jfif to .jpg, convert the others" if ".jfif" in others else "convert them"
        notes.append(
            f"{source.display_path(folder)}: found {count:,} images that are not read ({kinds}; first {first}), expected "
            f"{', '.join(IMAGE_SUFFIXES)}; {remedy}"
        )
    return notes


def record_name(folder: str, path: str) -> str:
    """Return the name of a record: its path relative to `folder`, with non-UTF-8 bytes escaped."""
    return (
        (posixpath.relpath(path, folder) if folder else path)
        .encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
    )
