"""Base class for builders: the record format on disk, options and published counts.

Builders derive from `ShardBasedBuilder`, which preserves the file order and writes one shard at a time in bounded
memory. `GeneratorBasedBuilder` requires TensorFlow for splits larger than 1000 MiB, because it shuffles them on disk.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cacenet_jax.data.builders.scan import NO_CAMERA, ON_ERROR, SPLITS, TEST_SPLITS, Entry, FileScan, Scan, record_name
from cacenet_jax.errors import UserError

__all__ = [
    "NO_CAMERA",
    "SPLITS",
    "TEST_SPLITS",
    "Entry",
    "FileScan",
    "ReidBuilder",
    "ReidConfig",
    "Scan",
    "record_name",
]

_SHARD_IMAGES = 4096  # TFDS keeps a whole shard in memory while writing it


@dataclasses.dataclass(eq=False, kw_only=True)
class ReidConfig(tfds.core.BuilderConfig):
    """TFDS configuration of a prepared copy.

    Attributes:
        scan: contents of the data set; None when reading a prepared copy.
        options: options that affect the records, stored in metadata.json.
        on_error: behaviour for broken images, stored in metadata.json.
        on_image: callback invoked after each written image.
    """

    scan: Scan | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_error: str = ON_ERROR[0]
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
    def check_counts(
        cls, counts: Mapping[str, int], options: Mapping[str, Any], origin: str, needs: Sequence[str] = SPLITS
    ) -> None:
        """Raise UserError if a split in `needs` is empty or its number of images differs from the published one.

        Where only train is needed, a test split is checked if there is one.
        """
        if "train" in needs and any(counts[split] for split in TEST_SPLITS):
            needs = SPLITS
        if empty := [split for split in needs if not counts[split]]:
            listed = "split " + " and split ".join(empty)
            have = "has" if len(empty) == 1 else "have"
            raise UserError(f"{cls.name}: {listed} of {origin} {have} no images, expected at least one; add images")
        expected = cls.expected_counts(options) or {}
        if wrong := [split for split in needs if counts[split] != expected.get(split, counts[split])]:
            listed = ", ".join(f"split {s} has {counts[s]:,} images, expected {expected[s]:,}" for s in wrong)
            raise UserError(
                f"{cls.name}: {origin}: {listed}; get a complete copy, or set config.data.options.check_counts=False "
                "for a subset"
            )

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(None, None, 3), doc="Encoded as stored in the data set, or as PNG."
                ),
                "pid": tfds.features.Scalar(np.int64, doc="Identity, the data set's own label."),
                "camid": tfds.features.Scalar(np.int64, doc="Camera, the data set's own number; -1: unknown."),
                "name": tfds.features.Text(doc="File name in its split."),
                "parts": tfds.features.Tensor(shape=(), dtype=np.object_, doc="PNG of part labels, or empty."),
            }
        )
        config = self.builder_config
        scan = config.scan
        metadata: dict[str, Any] = {"origin": scan.origin, **scan.report} if scan is not None else {"origin": ""}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.SUMMARY,
            features=features,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(options=config.options, on_error=config.on_error, **metadata),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [
                functools.partial(self._examples, split, start, min(start + _SHARD_IMAGES, count))
                for start in range(0, count, _SHARD_IMAGES)
            ]
            for split, count in self.builder_config.scan.counts().items()
            if count
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
