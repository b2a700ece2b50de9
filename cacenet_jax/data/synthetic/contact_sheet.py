"""Contact-sheet layout for synthetic_pedestrians: headings, labelled rows of tiles, part colours and PNG output."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cacenet_jax.data.synthetic.rendering import Raster

PAPER, INK = 250, (30, 30, 30)
LABEL_WIDTH, GAP, CAPTION = 150, 4, 12
# Background, head, torso, arms, legs, feet, carried.
PART_COLOURS = np.array(
    [
        [40, 40, 40],
        [240, 190, 70],
        [70, 130, 220],
        [230, 110, 90],
        [110, 190, 110],
        [200, 120, 200],
        [250, 250, 250],
    ],
    dtype=np.uint8,
)


class Tile(NamedTuple):
    """uint8 RGB image with a caption of about ten characters."""

    image_HWC: np.ndarray
    caption: str


class Heading(NamedTuple):
    """Line of text across the sheet."""

    text: str


class Row(NamedTuple):
    """Row of tiles with a title and a short text to the left. A tile of None leaves a gap."""

    title: str
    text: str
    tiles: Sequence[Tile | None]


def on_paper(raster: Raster) -> np.ndarray:
    """Composite rendered people over the paper colour, as uint8 (H, W, 3)."""
    rgb_HW3 = raster.rgb_HW3 + (PAPER / 255.0) * (1.0 - raster.coverage_HW)[:, :, None]
    return np.clip(np.rint(255.0 * rgb_HW3), 0, 255).astype(np.uint8)


def coloured(parts_HW: np.ndarray) -> np.ndarray:
    """Map part labels to colours, as uint8 (H, W, 3)."""
    return PART_COLOURS[parts_HW]


def layout(rows: Sequence[Row | Heading], height: int, width: int, columns: int) -> np.ndarray:
    """Draw the sheet as a uint8 RGB image, with tiles of height x width pixels and at most `columns` tiles per row."""
    heights = [22 if isinstance(row, Heading) else height + CAPTION + GAP for row in rows]
    picture = np.full((sum(heights) + GAP, LABEL_WIDTH + columns * (width + GAP) + GAP, 3), PAPER, dtype=np.uint8)
    top = GAP
    for row, tall in zip(rows, heights):
        if isinstance(row, Heading):
            _write(picture, row.text, GAP, top + 15, 0.45)
        else:
            _write(picture, row.title, GAP, top + 16, 0.45)
            for line, text in enumerate(textwrap.wrap(row.text, 22)):
                _write(picture, text, GAP, top + 34 + 14 * line, 0.36)
            for column, tile in enumerate(row.tiles[:columns]):
                if tile is None:
                    continue
                left = LABEL_WIDTH + column * (width + GAP)
                picture[top : top + height, left : left + width] = tile.image_HWC
                _write(picture, tile.caption, left + 1, top + height + 9, 0.33)
        top += tall
    return picture


def write_png(picture_HWC: np.ndarray, path: str | Path) -> None:
    """Write a uint8 RGB image as PNG, creating the folder if necessary."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(cv2.imencode(".png", picture_HWC[:, :, ::-1])[1].tobytes())


def _write(picture_HWC: np.ndarray, text: str, x: int, y: int, size: float) -> None:
    cv2.putText(picture_HWC, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
