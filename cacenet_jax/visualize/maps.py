"""Figure 4: conditional maps of a query given different gallery images.

Legend: H x W pixels, h x w positions of a map, G gallery images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cacenet_jax.errors import printable
from cacenet_jax.visualize.legend import FRAME_ENTRIES, Entry, draw_legend, fitted, legend_height, wrapped
from cacenet_jax.visualize.scores import Compared, Scores
from cacenet_jax.visualize.style import COLOURS, FONT, INK, MARKS, WIDTH, Sheet

NORMS, DIFFERENCES = "viridis", "PuOr"  # both colour-blind safe
VISIBLE = 1e-3  # smallest difference that is shown, as a fraction of the mean norm
_OPACITY = 0.7
_MEANING = (
    "Maps are drawn on the image that they describe, with their L2 norm at each position divided by its mean. Green "
    "to yellow: large norm; purple: larger norm than in the other map, orange: smaller."
)
_ROW_SCALES, _PAIR_SCALES = "One scale for each row.", "One scale for all norms, one for all changes."


def overlay(
    picture_HW3: UInt8[np.ndarray, "H W 3"], value_hw: Float[np.ndarray, "h w"], scale: Normalize, colours: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Overlay a colour-coded map on the image, which is converted to grey and contrast-stretched.

    Map values are interpolated bilinearly.
    """
    height, width = picture_HW3.shape[:2]
    large_HW = cv2.resize(value_hw.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colour_HW3 = colormaps[colours](scale(large_HW))[..., :3] * 255
    grey_HW = cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY).astype(float)
    dark, light = np.percentile(grey_HW, (1, 99))
    stretched_HW1 = 255 * ((grey_HW - dark) / max(light - dark, 1)).clip(0, 1)[..., None]
    return np.rint(_OPACITY * colour_HW3 + (1 - _OPACITY) * stretched_HW1).astype(np.uint8)


class Rows(NamedTuple):
    """Maps of figure 4 and the limits of their colour scales, one scale for each row.

    Norms are relative: a query's own map is divided by its mean, and all conditional maps by their common mean, because
    the two come from different layers.

    Attributes:
        own_hw: relative norm of the own map.
        given_Ghw: relative norms of the conditional maps.
        change_Ghw: conditional minus own.
        apart_Ghw: conditional maps minus their mean.
        norms: smallest and largest norm.
        change: largest absolute change.
        apart: largest absolute difference to the mean.
    """

    own_hw: Float[np.ndarray, "h w"]
    given_Ghw: Float[np.ndarray, "G h w"]
    change_Ghw: Float[np.ndarray, "G h w"]
    apart_Ghw: Float[np.ndarray, "G h w"]
    norms: tuple[float, float]
    change: float
    apart: float

    def part(self, some: slice) -> "Rows":
        """Return the maps of some gallery images, with the same scales."""
        maps = {name: getattr(self, name)[some] for name in ("given_Ghw", "change_Ghw", "apart_Ghw")}
        return self._replace(**maps)


def rows_of(own_hw: Float[np.ndarray, "h w"], given_Ghw: Float[np.ndarray, "G h w"]) -> Rows:
    """Compute what figure 4 shows.

    Args:
        own_hw: L2 norm of each position of the query's own map.
        given_Ghw: L2 norm of each position of the query's conditional map given each gallery image.
    """
    own_hw, given_Ghw = (x / max(float(x.mean()), 1e-12) for x in (own_hw, given_Ghw))
    change_Ghw, apart_Ghw = given_Ghw - own_hw, given_Ghw - given_Ghw.mean(axis=0)
    norms = float(min(own_hw.min(), given_Ghw.min())), float(max(own_hw.max(), given_Ghw.max()))
    change, apart = (float(np.abs(x).max()) for x in (change_Ghw, apart_Ghw))
    return Rows(own_hw, given_Ghw, change_Ghw, apart_Ghw, norms, change, apart)


def difference_words(name: str, largest: float) -> str:
    """Return a sentence on the size of a difference and, if it is too small to be shown, that there is none to see."""
    size = f"{name}: at most {100 * largest:.2g} per cent of the mean norm"
    return f"{size}, none to see." if largest < VISIBLE else f"{size}, the limit of its colours."


def figure(
    query_HW3: UInt8[np.ndarray, "H W 3"],
    rows: Rows,
    gallery_GHW3: UInt8[np.ndarray, "G H W 3"],
    compared: Sequence[Compared],
    query_name: str = "",
    has_legend: bool = True,
) -> Figure:
    """Draw a query's own map and its conditional maps given gallery images, and how these differ from it and each other.

    Each row has one colour scale; those of differences are symmetric. A difference below 0.1 per cent of the mean norm is
    not magnified, and the legend says that there is none to see.

    Args:
        query_HW3: the query.
        rows: maps, from `rows_of`.
        gallery_GHW3: gallery images.
        compared: name, ranks and distances of each gallery image.
        query_name: name of the query.
        has_legend: draw the legend.

    Source: paper, figure 4 and section 4.3.1.
    """
    scales = (Normalize(*rows.norms), _symmetric(rows.change), _symmetric(rows.apart))
    count = len(gallery_GHW3)
    label, gap, bar, line = 0.72, 0.12, 0.72, 0.145
    wide = min((WIDTH - label - bar) / (count + 1) - gap, 0.85)
    tall = wide * query_HW3.shape[0] / query_HW3.shape[1]
    names = [fitted(printable(name), wide + gap - 0.1) for name in (query_name, *(one.name for one in compared))]
    kinds = ("ranks", *Scores._fields)
    top = 0.28 + line * (len(kinds) + max(map(len, names))) + 0.06
    step = tall + gap
    width = label + (count + 1) * (wide + gap) + bar
    entries = (
        *FRAME_ENTRIES, Entry(f"{_MEANING} {_ROW_SCALES}"), Entry(difference_words("Change from its own map", rows.change)),
        Entry(difference_words("Difference between the conditional maps", rows.apart)),
    )  # fmt: skip
    sheet = Sheet(width, top + 4 * step + (legend_height(entries, width) if has_legend else 0.1))
    place = lambda column, row: (label + column * (wide + gap), top + row * step, wide, tall)
    titles = ("images", "norm \u00f7 mean", "change from\nits own map", "difference to\ntheir mean")
    for row, words in enumerate(titles):
        middle = top + row * step + tall / 2
        sheet.text(label / 2, middle, words, rotation="vertical", va="center", multialignment="center")
    for number, kind in enumerate(kinds, start=1):
        sheet.text(label - 0.02, 0.22 + number * line, kind, ha="right")
    heads = [("query", INK, ("",) * len(kinds))]
    for one in compared:
        title = "given" if one.right is None else f"{MARKS[one.right]} {'same' if one.right else 'other'}"
        colour = INK if one.right is None else COLOURS[one.right]
        heads.append((title, colour, (one.ranks.removeprefix("rank "), *one.scores.words())))
    for column, (title, colour, values) in enumerate(heads):
        middle = place(column, 0)[0] + wide / 2
        sheet.text(middle, 0.19, title, colour, FONT + 1, weight="bold")
        for number, words in enumerate((*values, *names[column]), start=1):
            sheet.text(middle, 0.22 + number * line, words)
    sheet.image(query_HW3, *place(0, 0))
    sheet.image(overlay(query_HW3, rows.own_hw, scales[0], NORMS), *place(0, 1))
    shown = ((rows.given_Ghw, NORMS), (rows.change_Ghw, DIFFERENCES), (rows.apart_Ghw, DIFFERENCES))
    for g, picture_HW3 in enumerate(gallery_GHW3):
        sheet.image(picture_HW3, *place(g + 1, 0), compared[g].right)
        for row, (maps_Ghw, colours) in enumerate(shown, start=1):
            sheet.image(overlay(query_HW3, maps_Ghw[g], scales[row - 1], colours), *place(g + 1, row))
    for row, (_, colours) in enumerate(shown, start=1):
        left, above, _, _ = place(count + 1, row)
        _bar(sheet, scales[row - 1], colours, left, above, tall)
    if has_legend:
        draw_legend(sheet, entries, width, top + 4 * step)
    return sheet.figure


def pair_figure(
    pictures_2HW3: UInt8[np.ndarray, "2 H W 3"],
    own_2hw: Float[np.ndarray, "2 h w"],
    given_2hw: Float[np.ndarray, "2 h w"],
    names: Sequence[str],
    scores: Scores,
    columns: int = 4,
) -> Figure:
    """Draw the own and the conditional maps of two images A and B, each given the other, and the changes.

    All norms share one colour scale, and both changes a symmetric one, as in `figure`.

    Args:
        pictures_2HW3: the images.
        own_2hw: L2 norm of each position of their own maps.
        given_2hw: L2 norm of each position of their conditional maps, given the other image.
        names: names of the images.
        scores: distances of the images.
        columns: number of panels side by side, 4 or 2.
    """
    rows = [rows_of(own_hw, given_hw[None]) for own_hw, given_hw in zip(own_2hw, given_2hw)]
    low, high = min(one.norms[0] for one in rows), max(one.norms[1] for one in rows)
    change = max(one.change for one in rows)
    norms, changes = Normalize(low, high), _symmetric(change)
    left, gap, bar, name_height, title_height, wide = 0.3, 0.12, 0.85, 0.24, 0.2, 1.05
    tall = wide * pictures_2HW3.shape[1] / pictures_2HW3.shape[2]
    width, step = left + columns * (wide + gap) + bar, title_height + tall + 0.06
    block = name_height + 4 // columns * step
    titles = ("image", "its own map", "given the other", "change")
    entries = (Entry(f"{_MEANING} {_PAIR_SCALES}"), Entry(difference_words("Change from its own map", change)))
    heading = [f"{kind} {words}" for kind, words in zip(Scores._fields, scores.words())]
    lines = wrapped("distances: " + ", ".join(heading), 0.85 * width)  # bold letters are wider
    top = 0.06 + 0.18 * len(lines)
    sheet = Sheet(width, top + 2 * block + legend_height(entries, width))
    for number, words in enumerate(lines, start=1):
        sheet.text(0.08, 0.01 + 0.18 * number, words, ha="left", size=FONT + 1, weight="bold")
    for letter, picture_HW3, name, one in zip("AB", pictures_2HW3, names, rows):
        (short,) = fitted(printable(name), width - left - 0.3, 1)
        sheet.text(0.08, top + 0.16, f"{letter}: {short}", ha="left")
        shown = (
            picture_HW3, overlay(picture_HW3, one.own_hw, norms, NORMS),
            overlay(picture_HW3, one.given_Ghw[0], norms, NORMS),
            overlay(picture_HW3, one.change_Ghw[0], changes, DIFFERENCES),
        )  # fmt: skip
        for place, (title, panel_HW3) in enumerate(zip(titles, shown)):
            row, column = divmod(place, columns)
            across, above = left + column * (wide + gap), top + name_height + row * step + title_height
            sheet.text(across + wide / 2, above - 0.05, title)
            sheet.image(panel_HW3, across, above, wide, tall)
        top += block
    for number in range(2 * 4 // columns):  # norms and changes in turn, beside each row of panels
        block_number, row = divmod(number, 4 // columns)
        above = top - (2 - block_number) * block + name_height + row * step + title_height
        across = left + columns * (wide + gap)
        _bar(sheet, (norms, changes)[number % 2], (NORMS, DIFFERENCES)[number % 2], across, above, tall)
        sheet.text(across, above - 0.11, ("norm \u00f7 mean", "change")[number % 2], ha="left")
    draw_legend(sheet, entries, width, top)
    return sheet.figure


def _symmetric(largest: float) -> Normalize:
    """Return a scale of differences that does not magnify those that are too small to be shown."""
    limit = max(largest, VISIBLE)
    return Normalize(-limit, limit)


def _bar(sheet: Sheet, scale: Normalize, colours: str, left: float, top: float, height: float) -> None:
    """Draw a colour bar with its limits among the ticks."""
    axes = sheet.axes(left, top, 0.1, height)
    axes.set_label("scale")
    low, high = float(scale.vmin or 0), float(scale.vmax or 0)
    apart = 0.1 * (high - low)  # keeps the labels of ticks off those of the limits
    inner = [tick for tick in MaxNLocator(4).tick_values(low, high) if low + apart < tick < high - apart]
    ticks = [low, *inner, high]
    drawn = sheet.figure.colorbar(ScalarMappable(scale, colours), cax=axes, ticks=ticks, format="%.3g")
    drawn.ax.tick_params(labelsize=FONT)
