"""Figure 5: lines that connect the strongest correspondences of two images u and v.

Correspondences are computed from the similarity of features, or taken from the network's graph ("learned").

Legend: N and M positions of two maps of h x w positions, L lines, P pairs of images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from cacenet_jax.errors import printable
from cacenet_jax.visualize.legend import FRAME_ENTRIES, Entry, draw_legend, fitted, legend_height
from cacenet_jax.visualize.style import COLOURS, FONT, LINE, MARKS, WIDTH, Sheet

Grid = tuple[int, int]


class Lines(NamedTuple):
    """Selected correspondences, strongest first.

    Attributes:
        from_L: row-major indices of positions in u.
        to_L: row-major indices of positions in v.
        strength_L: positive strengths.
    """

    from_L: np.ndarray
    to_L: np.ndarray
    strength_L: np.ndarray


class ComparedPair(NamedTuple):
    """A query and a gallery image with the lines between them.

    Attributes:
        picture_HW3: the gallery image.
        right: True if it shows the query's identity; None if that is unknown, which draws no frame and no label.
        caption: lines of text below the label "same person" or "another person": ranks, name and distances.
        similar: correspondences by similarity.
        learned: correspondences in the network's graph.
    """

    picture_HW3: UInt8[np.ndarray, "H W 3"]
    right: bool | None
    caption: str
    similar: Lines
    learned: Lines


def most_similar(cosine_NM: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N M"]:
    """Keep only the largest cosine in each row, that of the most similar position in v (section 3.3)."""
    best_N = cosine_NM.argmax(axis=1)
    kept_NM = np.zeros_like(cosine_NM)
    rows = np.arange(len(cosine_NM))
    kept_NM[rows, best_N] = cosine_NM[rows, best_N]
    return kept_NM


def strongest(affinity_NM: Float[np.ndarray, "N M"], count: int, grid: Grid) -> Lines:
    """Select the strongest positive correspondences, with endpoints spread over both images.

    Correspondences are considered in order of decreasing strength, with ties in row-major order. A
    correspondence is selected if each of its endpoints is at least max(rows // 8, 1) rows or columns away from the
    endpoints already selected in the same image. On maps of fewer than 16 rows, this only means that no position is
    used twice.

    Args:
        affinity_NM: strength of every pair of positions.
        count: maximum number of lines.
        grid: numbers of rows and columns of both maps.
    """
    apart = max(grid[0] // 8, 1)
    flat = np.argsort(-affinity_NM, axis=None, kind="stable")
    ends_22: list[np.ndarray] = []
    taken: list[tuple[int, int]] = []
    for u, v in zip(*np.unravel_index(flat, affinity_NM.shape)):
        if len(taken) == count or affinity_NM[u, v] <= 0:
            break
        both_22 = np.array([divmod(int(u), grid[1]), divmod(int(v), grid[1])])
        if all((np.abs(both_22 - other).max(axis=1) >= apart).all() for other in ends_22):
            ends_22.append(both_22)
            taken.append((int(u), int(v)))
    index_L2 = np.array(taken, int).reshape(-1, 2)
    return Lines(index_L2[:, 0], index_L2[:, 1], affinity_NM[index_L2[:, 0], index_L2[:, 1]])


def figure(
    query_HW3: UInt8[np.ndarray, "H W 3"],
    pairs: Sequence[ComparedPair],
    grid: Grid,
    learned_name: str,
    query_name: str = "",
    has_legend: bool = True,
) -> Figure:
    """Draw one column per pair of images, with correspondences by similarity above and learned ones below.

    Within each panel, stronger lines are wider and more opaque. The strengths of the weakest and the strongest line stand
    below the panel.

    Args:
        query_HW3: the query.
        pairs: P gallery images with their lines.
        grid: numbers of rows and columns of the maps.
        learned_name: label of the learned correspondences.
        query_name: name of the query.
        has_legend: draw the legend.
    """
    label, between, middle, line = 0.3, 0.3, 0.22, 0.145
    wide = (WIDTH - label - between * len(pairs)) / (2 * len(pairs)) - middle / 2
    wide = min(wide, 1.1)
    tall = wide * query_HW3.shape[0] / query_HW3.shape[1]
    column = 2 * wide + middle
    width = max(label + len(pairs) * (column + between), 3.0)
    captions = [[part for words in pair.caption.split("\n") for part in fitted(words, column + 0.15)] for pair in pairs]
    is_labelled = any(pair.right is not None for pair in pairs)
    title = 0.26 if query_name else 0.0
    head = title + 0.08 + 0.16 * is_labelled
    top, step = head + line * max(map(len, captions)) + 0.06, tall + 0.3
    frames = FRAME_ENTRIES if is_labelled else ()
    entries = (*_SAMPLES, *frames, Entry(_MEANING))
    sheet = Sheet(width, top + 2 * step + (legend_height(entries, width) if has_legend else 0.1))
    if query_name:
        words = f"left: query {printable(query_name, 90)}"
        sheet.text(0.08, 0.19, words, ha="left", size=FONT + 1, weight="bold")
    for row, words in enumerate(("by similarity", learned_name)):
        sheet.text(0.08, top + row * step + tall / 2, words, rotation="vertical", ha="left", va="center")
    for place, pair in enumerate(pairs):
        left = label + place * (column + between)
        if pair.right is not None:
            words = f"{MARKS[pair.right]} {'same person' if pair.right else 'another person'}"
            sheet.text(left + column / 2, head - 0.03, words, COLOURS[pair.right], FONT + 1, weight="bold")
        for number, words in enumerate(captions[place], start=1):
            sheet.text(left + column / 2, head + number * line, words)
        for row, lines in enumerate((pair.similar, pair.learned)):
            above = top + row * step
            panel_u = sheet.image(query_HW3, left, above, wide, tall)
            panel_v = sheet.image(pair.picture_HW3, left + wide + middle, above, wide, tall, pair.right)
            _draw(panel_u, panel_v, lines, grid, query_HW3.shape)
            if len(lines.strength_L):
                words = f"{lines.strength_L.min():.3g} to {lines.strength_L.max():.3g}"
                sheet.text(left + column / 2, above + tall + 0.16, words)
    if has_legend:
        draw_legend(sheet, entries, width, top + 2 * step)
    return sheet.figure


def _stroke(share: float) -> dict[str, Any]:
    """Return the look of a line: 0 is the weakest of its panel, 1 the strongest."""
    dark = patheffects.withStroke(linewidth=1.3 + 1.5 * share, foreground="black", alpha=0.3 + 0.4 * share)
    return {
        "color": LINE, "linewidth": 0.5 + 1.3 * share, "alpha": 0.4 + 0.6 * share,
        "path_effects": [dark, patheffects.Normal()],
    }  # fmt: skip


_SAMPLES = (
    Entry("weakest line of a panel", lambda axes: axes.plot((0, 1), (0.5, 0.5), **_stroke(0.0))),
    Entry("strongest line", lambda axes: axes.plot((0, 1), (0.5, 0.5), **_stroke(1.0))),
)
_MEANING = (
    "The wider and more opaque a line, the stronger, between the two values below its panel: cosine of the maps, or weight "
    "in the network's graph. A dot is a position of the map."
)


def _draw(panel_u: Axes, panel_v: Axes, lines: Lines, grid: Grid, shape: tuple[int, ...]) -> None:
    """Draw lines between two panels that show images of the given shape."""
    if not len(lines.from_L):
        panel_u.text(0.5, 0.5, "none", transform=panel_u.transAxes, ha="center", fontsize=FONT + 1,
                     bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
        return
    cell_2 = np.array([shape[1] / grid[1], shape[0] / grid[0]])
    weakest, span = lines.strength_L.min(), np.ptp(lines.strength_L)
    for u, v, strength in zip(*lines):
        share = (strength - weakest) / span if span > 0 else 1.0
        # Shift each end vertically within its cell depending on its column, so lines in the same row do not overlap.
        aside = 0.6 * ((u % grid[1] + 0.5) / grid[1] - 0.5)
        ends = [(np.array([i % grid[1] + 0.5, i // grid[1] + 0.5 + aside])) * cell_2 - 0.5 for i in (u, v)]
        patch = ConnectionPatch(
            ends[0], ends[1], "data", "data", axesA=panel_u, axesB=panel_v, capstyle="round", **_stroke(float(share))
        )
        panel_u.figure.add_artist(patch)
        for panel, end in zip((panel_u, panel_v), ends):
            panel.plot(*end, "o", color=LINE, markeredgecolor="black", markersize=2.5 + 1.5 * share, mew=0.5)
