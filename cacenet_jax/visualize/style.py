"""Shared figure style: colour-blind-safe colours, layout in inches, and image encoding.

Correct and wrong matches differ in colour (bluish green and vermillion of Okabe and Ito, "Color Universal Design",
2008), mark and frame style. Figures are normally at most WIDTH wide, and text is at least FONT points.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

INK, RIGHT, WRONG, LINE = "#222222", "#009E73", "#D55E00", "#F0E442"
MARKS = {True: "\u2713", False: "\u2717"}  # tick and cross
COLOURS = {True: RIGHT, False: WRONG}
FRAMES = {True: "solid", False: (0, (3, 1.5))}
WIDTH = 7.0  # inches
FONT = 8.0  # points
DPI = 130


class Sheet:
    """A figure whose elements are positioned in inches from the top left corner.

    Attributes:
        figure: the matplotlib figure.
    """

    def __init__(self, width: float, height: float):
        """Create an empty white figure of the given size in inches."""
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._size = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without ticks or a frame."""
        across, down = self._size
        axes = self.figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def plot(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes for curves, with ticks, faint lines at the ticks, and no frame at the top and right."""
        across, down = self._size
        axes = self.figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
        axes.tick_params(labelsize=FONT)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    def image(
        self, picture_HW3: np.ndarray, left: float, top: float, width: float, height: float, right: bool | None = None
    ) -> Axes:
        """Add an image that fills the given rectangle, framed as correct or wrong unless `right` is None."""
        axes = self.axes(left, top, width, height)
        axes.imshow(picture_HW3, interpolation="bilinear", aspect="auto")
        if right is not None:
            for spine in axes.spines.values():
                spine.set(visible=True, edgecolor=COLOURS[right], linestyle=FRAMES[right], linewidth=2.2)
        return axes

    def text(self, x: float, y: float, words: str, colour: str = INK, size: float = FONT, **placing: str) -> None:
        """Add text, centred above the point unless `placing` (ha, va, weight, rotation) overrides it."""
        across, down = self._size
        place: dict[str, Any] = {"ha": "center", "va": "baseline", **placing}
        self.figure.text(
            x / across, 1 - y / down, words, color=colour, fontsize=size, linespacing=1.15, parse_math=False, **place
        )


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG, with reproducible bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a letter of a file name that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def stacked(pictures: Sequence[bytes]) -> bytes:
    """Place PNGs below each other, on white, and encode them as one PNG."""
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def webp(picture: bytes | UInt8[np.ndarray, "H W 3"], height: int = 0) -> bytes:
    """Encode an image or PNG data as WebP, about a tenth of the size of a PNG.

    Args:
        picture: an image, or the bytes of a PNG.
        height: maximum height in pixels; 0 keeps the size.
    """
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else Image.fromarray(picture)
    if height and image.height > height:
        image = image.resize((max(round(image.width * height / image.height), 1), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
