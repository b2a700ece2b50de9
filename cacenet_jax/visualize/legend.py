"""Legends of the figures, and text that is fitted into a width in inches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from cacenet_jax.visualize.style import COLOURS, FONT, FRAMES, MARKS, Sheet

_ROW, _SAMPLE, _GAP = 0.18, 0.3, 0.25  # inches: height of a row, width of a sample, space between entries


class Entry(NamedTuple):
    """An entry of a legend.

    Attributes:
        words: its meaning.
        draw: function that draws a sample into axes from 0 to 1; None for a sentence.
    """

    words: str
    draw: Callable[[Axes], object] | None = None


def frame(right: bool) -> Entry:
    """Return the entry of the frames that mark the same person, or another one."""
    outline: dict[str, Any] = {"edgecolor": COLOURS[right], "linestyle": FRAMES[right], "linewidth": 2.0}
    draw = lambda axes: axes.add_patch(Rectangle((0.2, 0.05), 0.6, 0.9, fill=False, **outline))
    return Entry(f"{MARKS[right]} {'same person' if right else 'another person'}", draw)


FRAME_ENTRIES = (frame(True), frame(False))


def legend_height(entries: Sequence[Entry], width: float) -> float:
    """Return the height in inches that a legend takes in a figure of a width in inches."""
    return _ROW * (1 + max(row + len(lines) - 1 for _, _, row, lines in _layout(entries, width))) + 0.06


def draw_legend(sheet: Sheet, entries: Sequence[Entry], width: float, top: float) -> None:
    """Draw a legend below `top`, in inches, on a figure of a width in inches."""
    for entry, left, row, lines in _layout(entries, width):
        above = top + row * _ROW
        if entry.draw is not None:
            axes = sheet.axes(left, above + 0.02, _SAMPLE, _ROW - 0.05)
            axes.set(xlim=(0, 1), ylim=(0, 1), label="legend")
            entry.draw(axes)
            left += _SAMPLE + 0.05
        for number, line in enumerate(lines):
            sheet.text(left, above + 0.13 + number * _ROW, line, ha="left")


def _layout(entries: Sequence[Entry], width: float) -> list[tuple[Entry, float, int, list[str]]]:
    """Return each entry with its left end, its first row and its lines of text."""
    margin = 0.08
    left, row, places = margin, 0, []
    for entry in entries:
        sample = 0.0 if entry.draw is None else _SAMPLE + 0.05
        if left > margin and (entry.draw is None or left + sample + text_width(entry.words) > width - margin):
            left, row = margin, row + 1
        lines = wrapped(entry.words, width - 2 * margin - sample)
        places.append((entry, left, row, lines))
        left += sample + text_width(entry.words) + _GAP
        if entry.draw is None or len(lines) > 1:
            left, row = margin, row + len(lines)
    return places


@functools.lru_cache(maxsize=4096)
def text_width(words: str, size: float = FONT) -> float:
    """Return the width of a line of text in inches."""
    width, _, _ = _renderer().get_text_width_height_descent(words, FontProperties(size=size), ismath=False)
    return width / 72


@functools.cache
def _renderer() -> Any:
    return FigureCanvasAgg(Figure(dpi=72)).get_renderer()


def wrapped(words: str, width: float) -> list[str]:
    """Break a text at its spaces into lines of at most `width` inches, as far as its words allow."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fitted(name: str, width: float, most: int = 3) -> list[str]:
    """Break a name, best at its marks, into `most` lines of `width` inches or fewer; a long one loses its middle."""
    for kept in range(len(name), 0, -1):
        short = name if kept == len(name) else f"{name[: kept // 2]}\u2026{name[len(name) - (kept - kept // 2) :]}"
        for lines in (_cut(short, width, "/_- ."), _cut(short, width)):
            if len(lines) <= most:
                return lines
    return [name[:1]]


def _cut(name: str, width: float, marks: str = "") -> list[str]:
    lines = [""]
    for letter in name:
        if lines[-1] and text_width(lines[-1] + letter) > width:
            line = lines[-1]
            part = max((line.rfind(mark) for mark in marks), default=-1) + 1
            end = part if 2 * part >= len(line) else len(line)  # at a mark, if that leaves no short line
            lines[-1:] = [line[:end], line[end:]]
        lines[-1] += letter
    return lines
