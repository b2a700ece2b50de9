"""What the builders share: the record, the scan of a data set's files, and the checks.

A record is {image: encoded bytes as stored, pid: int, camid: int, name: str, parts: PNG bytes, empty where
unknown}. `pid` is the data set's own label. `camid` is the data set's own camera number (1 for the first), -1
where there is none.

The builders are `ShardBasedBuilder`s and not `GeneratorBasedBuilder`s: the latter needs TensorFlow as soon as
a split exceeds 1000 MiB (it shuffles on disk), as sets of MSMT17's size can; the former keeps the files'
order and writes shard by shard in bounded memory.
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
_SHARD_IMAGES = 4096  # TFDS holds one shard's images in memory while it writes


class Entry(NamedTuple):
    """One image: its path in the source, its name in the split, its labels."""

    path: str
    name: str
    pid: int
    camid: int


class Scan(abc.ABC):
    """What a data set holds, known without decoding an image.

    Attributes:
        origin: where it comes from, for messages.
        fingerprint: names the prepared copy; changes whenever a file, a label or an option that matters does.
    """

    origin: str
    fingerprint: str

    @abc.abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the number of images of each split."""

    @abc.abstractmethod
    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield the records start, …, stop - 1 of a split."""


class FileScan(Scan):
    """A scan of image files: records sorted by name, bytes read and checked when asked for."""

    def __init__(self, source: Source, folder: str, splits: Mapping[str, Sequence[Entry]]):
        """Sort the entries and check them.

        Args:
            source: where the paths lie.
            folder: the data set's folder in it, for messages.
            splits: for each of train, query and gallery its entries. Negative pids (junk) are dropped here.

        Raises:
            UserError: for a path that does not exist, a name that occurs twice, or one identity in train.
        """
        self._source = source
        self._splits = {
            split: sorted((e for e in splits.get(split, ()) if e.pid >= 0), key=lambda e: e.name) for split in SPLITS
        }
        self.origin = source.where(folder)
        self.fingerprint = fingerprint(
            (split, *entry[1:], *self._stamp(entry))
            for split, entry in self._labelled()  # all but the path
        )
        self._check()

    def _labelled(self) -> Iterator[tuple[str, Entry]]:
        for split, entries in self._splits.items():
            for entry in entries:
                yield split, entry

    def _stamp(self, entry: Entry) -> tuple[int, ...]:
        stamp = self._source.stamp(entry.path)
        if stamp is None:
            raise UserError(f"{self._source.where(entry.path)}: listed, but no such file; add it or remove its line")
        return stamp

    def _check(self) -> None:
        for split, entries in self._splits.items():
            for first, second in itertools.pairwise(entries):
                if first.name == second.name:
                    found = self._source.where(second.path)
                    raise UserError(f"{found}: occurs twice in split {split}; expected once; remove one of the two")
        identities = {entry.pid for entry in self._splits["train"]}
        if len(identities) == 1:
            only = next(iter(identities))
            raise UserError(
                f"{self.origin}: split train has one identity only (pid {only}); expected at least two to train on"
            )

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {split: len(entries) for split, entries in self._splits.items()}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield records; raises UserError for a file that is no complete image."""
        for entry in self._splits[split][start:stop]:
            image = self._source.read(entry.path)
            check_image(image, self._source.where(entry.path))
            yield {"image": image, "pid": entry.pid, "camid": entry.camid, "name": entry.name, "parts": b""}


@dataclasses.dataclass(eq=False, kw_only=True)
class ReidConfig(tfds.core.BuilderConfig):
    """A TFDS configuration that names one version of the data.

    Attributes:
        scan: the data; None when only reading.
        options: the options that shaped it, kept in metadata.json.
        on_image: called after each image written.
    """

    scan: Scan | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_image: Callable[[], object] = lambda: None


class ReidBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A person re-identification data set with splits train, query and gallery.

    A data set sets the class attributes and `scan`.
    """

    VERSION = tfds.core.Version("1.0.0")
    SUMMARY: ClassVar[str] = ""
    HOME: ClassVar[str] = ""  # where to get the data set; ends error messages
    OPTIONS: ClassVar[Mapping[str, Any]] = {}  # option -> default
    NEEDS_ROOT: ClassVar[bool] = True

    @classmethod
    @abc.abstractmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Look at the user's files, "" where NEEDS_ROOT is False. Raises UserError for whatever is wrong with them."""

    @classmethod
    def expected_counts(cls, options: Mapping[str, Any]) -> Mapping[str, int] | None:
        """Return the published counts, None where there is none or options say not to check."""
        del options
        return None

    @classmethod
    def complete_options(cls, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return all options, defaults filled in. Raises UserError for a wrong name or type."""
        options = dict(cls.OPTIONS)
        for key, value in dict(given or {}).items():
            if key == "check_counts" and key not in options:
                continue  # a benchmark's config used on data without published counts: there is nothing to check
            if key not in options:
                known = ", ".join(options) or "none"
                raise UserError(f"{cls.name}: unknown option {key!r}; known options: {known}; remove or correct it")
            default = options[key]
            if type(default) is float and type(value) is int:
                value = float(value)
            if type(value) is not type(default):
                kind = type(default).__name__
                raise UserError(
                    f"{cls.name}: option {key} is {value!r}, expected {kind}; give a value such as {default!r}"
                )
            options[key] = value
        return options

    @classmethod
    def check_counts(cls, counts: Mapping[str, int], options: Mapping[str, Any], origin: str) -> None:
        """Raise UserError for an empty split, or a number of images that is not the published one."""
        for split in SPLITS:
            if not counts[split]:
                raise UserError(
                    f"{cls.name}: split {split} of {origin} has no images; expected at least one; put some there"
                )
        for split, expected in (cls.expected_counts(options) or {}).items():
            if counts[split] != expected:
                raise UserError(
                    f"{cls.name}: split {split} of {origin} has {counts[split]:,} images, expected "
                    f"{expected:,}; get a "
                    f"complete copy, or set config.data.options.check_counts=False if a subset is meant"
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
        """Say nothing: TFDS would speak of a download."""

    def _log_download_done(self) -> None:
        """Say nothing, likewise."""


def name_in(folder: str, path: str) -> str:
    """Return `path` relative to `folder`, the name of a record."""
    return posixpath.relpath(path, folder) if folder else os.fspath(path)
