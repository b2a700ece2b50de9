"""Part labels of images: which body part each pixel shows. The semantic alignment of table 2 needs them.

They come from the data set where its records carry them (synthetic_pedestrians), else from a folder of label files, one an
image: config.data.parts/<name of the image with .png in place of its ending>, 8 bits, one channel, of any size: the file
is brought to the image's. 0 means nobody; 1 to 31 are body parts, of any numbering that all files share, without left and
right, because training mirrors images.
"""

import dataclasses
import os

import cv2
import numpy as np
from jaxtyping import UInt8

from cacenet_jax.data.builders import Split
from cacenet_jax.errors import UserError

NUM_LABELS = 32
_REMEDY = f"expected an 8-bit PNG of one channel with labels from 0 to {NUM_LABELS - 1}"


@dataclasses.dataclass(frozen=True)
class PartLabels:
    """Reads the part labels of records.

    Attributes:
        folder: of label files, for records without labels of their own.
    """

    folder: str | None = None

    def path(self, name: str) -> str:
        """The label file of an image."""
        return os.path.join(self.folder or "", os.path.splitext(name)[0] + ".png")

    def read(self, encoded: bytes, name: str, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
        """Labels of an image at the network's size, each pixel its nearest neighbour's.

        Args:
            encoded: the labels that the record carries, a PNG; empty for none.
            name: of the record.
            height: rows.
            width: columns.

        Raises:
            UserError: no labels, or a file that holds something else.
        """
        where = name
        if not encoded:
            where = self.path(name)
            try:
                with open(where, "rb") as file:
                    encoded = file.read()
            except OSError as error:
                raise UserError(f"{where}: found no part labels ({error.strerror}), {_REMEDY}; add the file") from error
        labels_HW = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
        if labels_HW is None or labels_HW.ndim != 2 or labels_HW.dtype != np.uint8:
            found = "no image" if labels_HW is None else f"shape {labels_HW.shape} of {labels_HW.dtype}"
            raise UserError(f"{where}: found {found}, {_REMEDY}; write it again")
        if labels_HW.max() >= NUM_LABELS:
            raise UserError(f"{where}: found label {labels_HW.max()}, {_REMEDY}; merge parts")
        return cv2.resize(labels_HW, (width, height), interpolation=cv2.INTER_NEAREST)

    def check(self, splits: dict[str, Split]) -> None:
        """Raises UserError, before any training, where an image of a split has no labels.

        Args:
            splits: by name.
        """
        for split_name, split in splits.items():
            where = [self.path(name) for name in split.names]
            # Files first: to read a record takes longer, 1 s for 15,000 of them.
            absent = [i for i, path in enumerate(where) if self.folder is None or not os.path.isfile(path)]
            missing = [i for i in absent if not split.records[i]["parts"]]
            if not missing:
                continue
            which = f"{len(missing)} of the {len(split)} images of the {split_name} split"
            if self.folder is None:
                raise UserError(
                    f"{which}: found no part labels in the data set, {split.names[missing[0]]} first, expected them for "
                    "config.model.pair.alignment=semantic; set config.data.parts to a folder of label files or choose "
                    "another alignment"
                )
            raise UserError(f"{where[missing[0]]}: found no such label file, for {which}; {_REMEDY} for each image")
