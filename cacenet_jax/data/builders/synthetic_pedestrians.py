"""Synthetic pedestrians, rendered by `cacenet_jax.data.synthetic` and stored as PNG with part labels."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import cv2

from cacenet_jax.data.builders.base import SPLITS, ReidBuilder, Scan
from cacenet_jax.data.builders.source import fingerprint
from cacenet_jax.data.synthetic import dataset


class SyntheticPedestrians(ReidBuilder, skip_registration=True):
    """Builder for the synthetic data set. Its options are the fields of `SyntheticSpec`; no data root is needed."""

    name = "synthetic_pedestrians"
    SUMMARY = "Rendered pedestrians in groups of look-alikes, with part labels."
    OPTIONS: ClassVar[Mapping[str, Any]] = {
        field.name: field.default for field in dataclasses.fields(dataset.SyntheticSpec)
    }
    NEEDS_ROOT = False

    @classmethod
    def scan(cls, root: str, options: Mapping[str, Any]) -> Scan:
        """Create a scan of the images that the options specify.

        Raises:
            UserError: an option is invalid.
        """
        del root
        return SyntheticScan(dataset.SyntheticSpec(**options))


class SyntheticScan(Scan):
    """Scan that renders each image once, in order, during iteration."""

    def __init__(self, spec: dataset.SyntheticSpec):
        self.origin = "the renderer"
        # Include the renderer's source code, which determines the images.
        modules = sorted(pathlib.Path(dataset.__file__).parent.glob("*.py"))
        self.fingerprint = fingerprint([spec, *(module.read_bytes() for module in modules)])
        self._spec = spec
        self._stream = dataset.generate(spec)
        self._waiting: dict[str, collections.deque] = {split: collections.deque() for split in SPLITS}

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split."""
        counts = dataset.num_images(self._spec)
        return {split: int(counts.get(split, 0)) for split in SPLITS}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield the next records of a split in rendering order, buffering those of other splits."""
        for _ in range(start, stop):
            while not self._waiting[split]:
                image = next(self._stream)
                self._waiting[image.split].append(_record(image))
            yield self._waiting[split].popleft()


def _record(image: dataset.SyntheticImage) -> dict[str, Any]:
    """Encode an image and its part labels as a record."""
    pixels = cv2.imencode(".png", cv2.cvtColor(image.image_HWC, cv2.COLOR_RGB2BGR))[1].tobytes()
    parts = cv2.imencode(".png", image.parts_HW)[1].tobytes()
    return {
        "image": pixels,
        "pid": int(image.pid),
        "camid": int(image.camid),
        "name": image.name,
        "parts": parts,
    }
