"""Per-pixel body-part labels, required by semantic alignment (table 2 of the paper).

Labels are read from the records if present (as in synthetic_pedestrians), otherwise from one PNG file per image in the
folder config.data.parts. The file has the image's name with the suffix .png and a single 8-bit channel. It may have any
size, and is resized like the image. Label 0 is the background. Labels 1 to 31 are body parts, and their meaning must be
the same in all files. Left and right parts must share a label, because training mirrors images.
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
    """Part-label reader.

    Attributes:
        folder: folder of label files, used for records without labels; None if there is no folder.
    """

    folder: str | None = None

    def path(self, name: str) -> str:
        """Return the path of the label file of an image."""
        return os.path.join(os.path.expanduser(self.folder or ""), os.path.splitext(name)[0] + ".png")

    def read(self, encoded: bytes, name: str, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
        """Decode the labels of an image and resize them with nearest-neighbour interpolation.

        Args:
            encoded: PNG bytes from the record; if empty, the label file is read.
            name: name of the record.
            height: output rows.
            width: output columns.

        Raises:
            UserError: the labels are missing or invalid.
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
            content = "no image" if labels_HW is None else f"shape {labels_HW.shape} of {labels_HW.dtype}"
            raise UserError(f"{where}: found {content}, {_REMEDY}; write it again")
        if labels_HW.max() >= NUM_LABELS:
            raise UserError(f"{where}: found label {labels_HW.max()}, {_REMEDY}; merge some parts")
        return cv2.resize(labels_HW, (width, height), interpolation=cv2.INTER_NEAREST)

    def check(self, splits: dict[str, Split]) -> None:
        """Raise UserError if any image lacks labels.

        Args:
            splits: splits to check, by name.
        """
        for split_name, split in splits.items():
            where = [self.path(name) for name in split.names]
            # Look for files first, because reading records is slower (about 1 s for 15,000 records).
            without_file = [i for i, path in enumerate(where) if self.folder is None or not os.path.isfile(path)]
            missing = [i for i in without_file if not split.records[i]["parts"]]
            if not missing:
                continue
            which = f"{len(missing)} of the {len(split)} images of the {split_name} split"
            if self.folder is None:
                raise UserError(
                    f"{which}: found no part labels in the data set, first {split.names[missing[0]]}, expected them for "
                    "config.model.alignment=semantic; set config.data.parts to a folder of label files or choose another "
                    "alignment"
                )
            raise UserError(
                f"{where[missing[0]]}: found no such label file, for {which}; {_REMEDY} for each image; add them"
            )
