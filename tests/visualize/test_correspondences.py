"""Strongest correspondences against a double loop; what is drawn of them."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import ConnectionPatch

from cacenet_jax.visualize.correspondences import ComparedPair, Lines, figure, most_similar, strongest
from cacenet_jax.visualize.style import RIGHT, WRONG

PICTURE = np.full((32, 16, 3), 90, np.uint8)


def by_hand(affinity, count, columns, apart):
    """Look for the strongest allowed pair among all, again and again."""
    taken = []
    far = lambda a, b: max(abs(a // columns - b // columns), abs(a % columns - b % columns)) >= apart
    while len(taken) < count:
        best = None
        for i in range(len(affinity)):
            for j in range(len(affinity[0])):
                allowed = all(far(i, u) and far(j, v) for u, v in taken)
                if allowed and affinity[i][j] > 0 and (best is None or affinity[i][j] > affinity[best[0]][best[1]]):
                    best = i, j
        if best is None:
            break
        taken.append(best)
    return taken


@pytest.mark.parametrize(("grid", "apart"), [((4, 2), 1), ((8, 4), 1), ((16, 2), 2), ((24, 2), 3)])
def test_strongest_equals_the_loop(grid, apart):
    nodes = grid[0] * grid[1]
    affinity = np.random.default_rng(nodes).integers(-4, 9, (nodes, nodes)) / 8  # with equal ones
    lines = strongest(affinity, 6, grid)
    expected = by_hand(affinity.tolist(), 6, grid[1], apart)
    assert list(zip(lines.from_L.tolist(), lines.to_L.tolist())) == expected
    np.testing.assert_array_equal(lines.strength_L, [affinity[pair] for pair in expected])


def test_nothing_positive_is_no_line():
    lines = strongest(np.array([[-1.0, 0.0], [0.0, -2.0]]), 5, (2, 1))
    assert len(lines.from_L) == len(lines.to_L) == len(lines.strength_L) == 0


def test_each_position_keeps_its_most_similar():
    cosine = np.random.default_rng(1).uniform(-1, 1, (6, 5))
    found = most_similar(cosine)
    for i, row in enumerate(cosine.tolist()):
        for j, value in enumerate(row):
            assert found[i, j] == (value if value == max(row) else 0)


def test_figure_draws_every_line_and_says_what_it_is():
    some = Lines(np.array([0, 3]), np.array([1, 2]), np.array([0.9, 0.1]))
    none = Lines(np.array([], int), np.array([], int), np.array([]))
    pairs = [ComparedPair(PICTURE, True, "rank 3", some, none), ComparedPair(PICTURE, False, "rank 1", some, some)]
    pairs[0] = pairs[0]._replace(caption="rank 3\nimage_7.png\npair 0.1234")
    drawn = figure(PICTURE, pairs, (2, 2), "correspondence attention", "query.png")
    patches = drawn.findobj(ConnectionPatch)
    assert len(patches) == 2 + 0 + 2 + 2
    assert patches[0].get_linewidth() > patches[1].get_linewidth()
    assert [text.get_text() for panel in drawn.axes for text in panel.texts] == ["none"]
    legend = [axes.get_lines()[0] for axes in drawn.axes if axes.get_label() == "legend" and axes.get_lines()]
    assert [line.get_linewidth() for line in legend] == [patches[1].get_linewidth(), patches[0].get_linewidth()]
    assert [line.get_alpha() for line in legend] == [patches[1].get_alpha(), patches[0].get_alpha()]
    texts = {text.get_text() for text in drawn.texts}
    assert {"rank 3", "image_7.png", "pair 0.1234", "left: query query.png", "0.1 to 0.9"} <= texts
    assert {"weakest line of a panel", "strongest line", "\u2713 same person"} <= texts
    assert {"by similarity", "correspondence attention", "\u2713 same person", "\u2717 another person"} <= texts
    frames = [panel.spines["top"] for panel in drawn.axes if panel.spines["top"].get_visible()]
    assert [to_hex(frame.get_edgecolor()).upper() for frame in frames] == [RIGHT, RIGHT, WRONG, WRONG]
    # An end lies in the cell of its position: 3 is the lower right one of 2 x 2, 2 the lower left one.
    (x_u, y_u), (x_v, y_v) = patches[1].xy1, patches[1].xy2
    assert x_u > 8 > x_v and y_u > 16 and y_v > 16
