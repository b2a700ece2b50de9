"""Base classes for builders: the record format, scans of a data set's files, and checks.

A record is {image: encoded bytes as stored, pid: int, camid: int, name: str, parts: PNG bytes, empty if unknown}. `pid`
is the data set's own identity label. `camid` is its own camera number, usually counted from 1, or -1 if unknown.

Builders derive from `ShardBasedBuilder`, which preserves the file order and writes one shard at a time in bounded
memory. `GeneratorBasedBuilder` requires TensorFlow for splits larger than 1000 MiB, because it shuffles them on disk.
"""

import abc
import dataclasses
import functools
import itertools
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from cacenet_jax.data.builders.source import Source, check_image, fingerprint
from cacenet_jax.errors import UserError

SPLITS = ("train", "query", "gallery")
NO_CAMERA = -1
_SHARD_IMAGES = 4096  # TFDS keeps a whole shard in memory while writing it


class Entry(NamedTuple):
    """Labelled image file: path in the source, name in the split, identity and camera."""

    path: str
    name: str
    pid: int
    camid: int


class Scan(abc.ABC):
    """Contents of a data set, determined without decoding images.

    Attributes:
        origin: source of the data, for error messages.
        fingerprint: name of the prepared copy; changes with any file, label or option that affects the records.
    """

    origin: str
    fingerprint: str

    @abc.abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""

    @abc.abstractmethod
    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield records start .. stop-1 of a split."""


class FileScan(Scan):
    """Scan of image files. Records are sorted by name, and files are read and checked during iteration."""

    def __init__(self, source: Source, folder: str, splits: Mapping[str, Sequence[Entry]]):
        """Sort and check the entries.

        Args:
            source: source that contains the files.
            folder: folder of the data set within `source`, for error messages.
            splits: entries of train, query and gallery; entries with a negative pid (junk) are dropped.

        Raises:
            UserError: a file does not exist, a name occurs twice in a split, or train has only one identity.
        """
        self._source = source
        self._splits = {
            split: sorted((e for e in splits.get(split, ()) if e.pid >= 0), key=lambda e: e.name) for split in SPLITS
        }
        self.origin = source.display_path(folder)
        self.fingerprint = fingerprint(
            (split, *entry[1:], *self._stamp(entry))
            for split, entry in self._labelled()  # all fields except the path
        )
        self._check()

    def _labelled(self) -> Iterator[tuple[str, Entry]]:
        for split, entries in self._splits.items():
            for entry in entries:
                yield split, entry

    def _stamp(self, entry: Entry) -> tuple[int, ...]:
        stamp = self._source.stamp(entry.path)
        if stamp is None:
            raise UserError(
                f"{self._source.display_path(entry.path)}: listed, but no such file; add it or remove its line"
            )
        return stamp

    def _check(self) -> None:
        for split, entries in self._splits.items():
            for first, second in itertools.pairwise(entries):
                if first.name == second.name:
                    path = self._source.display_path(second.path)
                    raise UserError(f"{path}: found twice in split {split}, expected once; remove one of the two")
        identities = {entry.pid for entry in self._splits["train"]}
        if len(identities) == 1:
            only = next(iter(identities))
            raise UserError(
                f"{self.origin}: split train has a single identity (pid {only}), expected at least two to train "
                "on; add images of others"
            )

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""
        return {split: len(entries) for split, entries in self._splits.items()}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield records start .. stop-1 of a split.

        Raises:
            UserError: an image file is broken.
        """
        for entry in self._splits[split][start:stop]:
            image = self._source.read(entry.path)
            check_image(image, self._source.display_path(entry.path))
            yield {"image": image, "pid": entry.pid, "camid": entry.camid, "name": entry.name, "parts": b""}


@dataclasses.dataclass(eq=False, kw_only=True)
class ReidConfig(tfds.core.BuilderConfig):
    """TFDS configuration of a prepared copy.

    Attributes:
        scan: contents of the data set; None when reading a prepared copy.
        options: options that affect the records, stored in metadata.json.
        on_image: callback invoked after each written image.
    """

    scan: Scan | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_image: Callable[[], object] = lambda: None


class ReidBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base class for builders of person re-identification data sets with splits train, query and gallery.

    Subclasses define the class attributes and implement `scan`.
    """

    VERSION = tfds.core.Version("1.0.0")
    SUMMARY: ClassVar[str] = ""
    HOME: ClassVar[str] = ""  # where to obtain the data set, appended to error messages
    OPTIONS: ClassVar[Mapping[str, Any]] = {}  # default value of each option
    NEEDS_ROOT: ClassVar[bool] = True

    @classmethod
    @abc.abstractmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Scan the data set at `root`, which is "" if none is given.

        Raises:
            UserError: the files are not as expected.
        """

    @classmethod
    def expected_counts(cls, options: Mapping[str, Any]) -> Mapping[str, int] | None:
        """Return the published number of images in each split, or None to skip the check."""
        del options
        return None

    @classmethod
    def complete_options(cls, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the given options with defaults for the rest.

        Raises:
            UserError: an option is unknown or has the wrong type.
        """
        options = dict(cls.OPTIONS)
        for key, value in dict(given or {}).items():
            if key == "check_counts" and key not in options:
                continue  # set by benchmark configs; ignored for data sets without published counts
            if key not in options:
                known = ", ".join(options) or "none"
                raise UserError(f"{cls.name}: unknown option {key!r}; known options: {known}; remove or correct it")
            default = options[key]
            if type(default) is float and type(value) is int:
                value = float(value)
            if type(value) is not type(default):
                type_name = type(default).__name__
                raise UserError(
                    f"{cls.name}: option {key} is {value!r}, expected {type_name}; give a value such as {default!r}"
                )
            options[key] = value
        return options

    @classmethod
    def check_counts(cls, counts: Mapping[str, int], options: Mapping[str, Any], origin: str) -> None:
        """Raise UserError if a split is empty or its number of images differs from the published one."""
        for split in SPLITS:
            if not counts[split]:
                raise UserError(
                    f"{cls.name}: split {split} of {origin} has no images, expected at least one; add images"
                )
        for split, expected in (cls.expected_counts(options) or {}).items():
            if counts[split] != expected:
                raise UserError(
                    f"{cls.name}: split {split} of {origin} has {counts[split]:,} images, expected "
                    f"{expected:,}; get a "
                    f"complete copy, or set config.data.options.check_counts=False for a subset"
                )

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), doc="Encoded as stored in the data set."),
                "pid": tfds.features.Scalar(np.int64, doc="Identity, the data set's own label."),
                "camid": tfds.features.Scalar(np.int64, doc="Camera, the data set's own number; -1: unknown."),
                "name": tfds.features.Text(doc="File name in its split."),
                "parts": tfds.features.Tensor(shape=(), dtype=np.object_, doc="PNG of part labels, or empty."),
            }
        )
        config = self.builder_config
        origin = config.scan.origin if config.scan is not None else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.SUMMARY,
            features=features,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(origin=origin, options=config.options),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [
                functools.partial(self._examples, split, start, min(start + _SHARD_IMAGES, count))
                for start in range(0, count, _SHARD_IMAGES)
            ]
            for split, count in self.builder_config.scan.counts().items()
        }

    def _examples(self, split: str, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        examples = self.builder_config.scan.examples(split, start, stop)
        for key, example in enumerate(examples, start):
            yield key, example
            self.builder_config.on_image()

    def _log_download_bytes(self) -> None:
        """Suppress the TFDS download message."""

    def _log_download_done(self) -> None:
        """Suppress the TFDS download message."""


def record_name(folder: str, path: str) -> str:
    """Return the name of a record: its path relative to `folder`."""
    return posixpath.relpath(path, folder) if folder else os.fspath(path)
