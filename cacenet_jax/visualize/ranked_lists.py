"""Figure 6: individual and re-scored ranked lists of the queries whose average precision changed most.

Legend: Q queries, L length of a ranked list.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure

from cacenet_jax.errors import printable
from cacenet_jax.visualize.legend import FRAME_ENTRIES, Entry, draw_legend, fitted, legend_height
from cacenet_jax.visualize.scores import Scores
from cacenet_jax.visualize.style import COLOURS, FONT, MARKS, WIDTH, Sheet

_KINDS = Scores._fields
_MEANING = (
    "Below each image: its place, its individual, pair and mixed distances to the query (smaller is more alike), and its "
    "name. Each list is sorted by the distance that it is named after, a conditional one by the pair distance; images "
    "without a pair distance (\u2013) are not re-scored and follow in individual order."
)


class Change(NamedTuple):
    """Effect of re-scoring on all queries.

    Attributes:
        better: number of queries whose average precision rose.
        worse: number of queries whose average precision fell.
        same: number of queries with a match whose average precision did not change.
        mean: mean change of average precision, as a fraction.
    """

    better: int
    worse: int
    same: int
    mean: float


class ShownList(NamedTuple):
    """A ranked list of one query, ready to draw.

    Attributes:
        name: name of the ranking.
        ap: average precision of the ranking for this query.
        pictures: the highest-ranked gallery images.
        right_L: True for the pictures that show the query's identity.
        names: names of the pictures.
        scores: distances of the pictures to the query.
    """

    name: str
    ap: float
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]]
    right_L: Bool[np.ndarray, "L"]
    names: Sequence[str]
    scores: Sequence[Scores]

    def title(self) -> str:
        """Return the name of the ranking and its average precision."""
        words = "no match in the gallery" if np.isnan(self.ap) else f"average precision {100 * self.ap:.1f}"
        return f"{self.name}, {words}"


def changed(
    before_Q: Float[np.ndarray, "Q"], after_Q: Float[np.ndarray, "Q"], count: int
) -> tuple[Int[np.ndarray, "n"], Change]:
    """Select the queries whose average precision changed most, and summarise the change over all queries.

    Half of the selected queries (rounded up) have the largest gains, and the other half the largest losses. If there
    are too few gains or losses, more of the other kind are selected, then unchanged queries. Gains come first, then
    losses, then unchanged queries. Gains and losses are sorted by the size of the change, with ties in query order.

    Args:
        before_Q: average precision of the individual ranking, NaN for a query without a match.
        after_Q: average precision of the re-scored ranking.
        count: number of queries to select; all queries with a match if there are fewer.

    Returns:
        Indices of the selected queries, and the summary.
    """
    gain_Q = after_Q - before_Q
    valid = np.flatnonzero(~np.isnan(gain_Q))
    down = valid[np.argsort(-gain_Q[valid], kind="stable")]
    gains = down[gain_Q[down] > 0]
    up = valid[np.argsort(gain_Q[valid], kind="stable")]
    losses = up[gain_Q[up] < 0]
    num_losses = min(max(count // 2, count - len(gains)), len(losses))
    num_gains = min(count - num_losses, len(gains))
    rest = valid[gain_Q[valid] == 0][: count - num_gains - num_losses]
    summary = Change(len(gains), len(losses), len(valid) - len(gains) - len(losses), float(gain_Q[valid].mean()))
    return np.concatenate([gains[:num_gains], losses[:num_losses], rest]), summary


def figure(query_HW3: UInt8[np.ndarray, "H W 3"], lists: Sequence[ShownList], query_name: str = "") -> Figure:
    """Draw a query and its ranked lists, one below the other, with the distance and the name of each image.

    Matches are marked by colour, frame and symbol. If a list has more than 10 images, the figure is wider than `WIDTH`.

    Args:
        query_HW3: the query.
        lists: its ranked lists.
        query_name: name of the query.
    """
    length = max(len(shown.right_L) for shown in lists)
    label, gap, start, line = 0.05, 0.1, 0.95, 0.145
    wide = min((WIDTH - label - start) / (length + 1) - gap, 0.8)
    wide = max(wide, 0.46)
    tall = wide * query_HW3.shape[0] / query_HW3.shape[1]
    left = max(label + wide + 0.3, 0.85)
    width = max(left + length * (wide + gap) + gap, 4.5)
    names = [[fitted(printable(name), wide + gap - 0.06, 4) for name in shown.names] for shown in lists]
    below = 0.2 + len(_KINDS) * line + line * max((len(lines) for row in names for lines in row), default=0)
    step, top = 0.2 + tall + below + 0.15, 0.3 if query_name else 0.1
    entries = (*FRAME_ENTRIES, Entry(_MEANING))
    bottom = top + len(lists) * step
    sheet = Sheet(width, bottom + legend_height(entries, width))
    if query_name:
        sheet.text(label, 0.19, f"query {printable(query_name, 90)}", ha="left", size=FONT + 1, weight="bold")
    sheet.text(label + wide / 2, top + 0.14, "query", size=FONT + 1, weight="bold")
    sheet.image(query_HW3, label, top + 0.2, wide, tall)
    for row, shown in enumerate(lists):
        above = top + row * step
        sheet.text(left, above + 0.14, shown.title(), ha="left", size=FONT + 1, weight="bold")
        under = above + 0.2 + tall + 0.18
        for number, kind in enumerate(_KINDS, start=1):
            sheet.text(left - 0.06, under + number * line, kind, ha="right")
        for place, (picture_HW3, right) in enumerate(zip(shown.pictures, shown.right_L.tolist())):
            x = left + place * (wide + gap)
            sheet.image(picture_HW3, x, above + 0.2, wide, tall, right)
            sheet.text(x + wide / 2, under, f"{place + 1} {MARKS[right]}", COLOURS[right], FONT + 1)
            for number, words in enumerate((*shown.scores[place].words(), *names[row][place]), start=1):
                sheet.text(x + wide / 2, under + number * line, words)
    draw_legend(sheet, entries, width, bottom)
    return sheet.figure
