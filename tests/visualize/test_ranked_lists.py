"""Which queries are shown, in which order, and how right and wrong are told apart."""

import numpy as np
from matplotlib.colors import to_hex

from cacenet_jax.visualize.ranked_lists import Change, ShownList, changed, figure
from cacenet_jax.visualize.scores import Scores
from cacenet_jax.visualize.style import RIGHT, WRONG

NAN = float("nan")


def test_gains_first_then_losses_the_largest_first():
    before = np.array([0.5, 0.2, NAN, 0.9, 0.4, 0.5, 0.3, 0.7])
    after = np.array([0.6, 0.7, NAN, 0.1, 0.4, 0.2, 0.4, 0.7])
    found, change = changed(before, after, 4)
    assert found.tolist() == [1, 6, 3, 5]  # +0.5, +0.1 (a rounding above query 0's), -0.8, -0.3
    assert change == Change(3, 2, 2, change.mean)
    np.testing.assert_allclose(change.mean, (0.1 + 0.5 - 0.8 + 0 - 0.3 + 0.1 + 0) / 7)
    assert changed(before, after, 3)[0].tolist() == [1, 6, 3]  # one more gain than losses
    assert changed(before, after, 1)[0].tolist() == [1]
    # Where one side has too few the other fills up; unchanged ones come last, those without a match never.
    assert changed(before, after, 50)[0].tolist() == [1, 6, 0, 3, 5, 4, 7]
    assert changed(after, before, 50)[0].tolist() == [3, 5, 1, 6, 0, 4, 7]
    assert changed(before, np.fmax(before, after), 4)[0].tolist() == [1, 6, 0, 3]
    assert changed(before, np.fmin(before, after), 4)[0].tolist() == [3, 5, 0, 1]


def test_equal_changes_keep_the_order_of_the_queries():
    before = np.zeros(5)
    assert changed(before, before + 0.25, 3)[0].tolist() == [0, 1, 2]
    assert changed(before + 0.25, before, 3)[0].tolist() == [0, 1, 2]


def test_figure_tells_right_from_wrong_by_colour_frame_and_mark():
    picture = np.zeros((16, 8, 3), np.uint8)
    right = np.array([False, True, True])
    scores = [Scores(0.11111, 0.2, 0.3), Scores(1.0, NAN, NAN), Scores(0.4, 0.5, 0.6)]
    names = ["a.png", "0002_c1s1_000451_03.jpg", "$x$_\udcff"]
    lists = [
        ShownList("individual", 0.25, [picture] * 3, right, names, scores),
        ShownList("mixed", NAN, [picture] * 2, ~right[:2], names[:2], scores[:2]),
    ]
    drawn = figure(picture, lists, "query_1.png")
    texts = [text.get_text() for text in drawn.texts]
    assert texts[:2] == ["query query_1.png", "query"]
    assert texts[2:6] == ["individual, average precision 25.0", "individual", "pair", "mixed"]
    assert texts[6:11] == ["1 \u2717", "0.1111", "0.2000", "0.3000", "a.png"]
    assert texts[11:15] == ["2 \u2713", "1.0000", "\u2013", "\u2013"]
    assert "".join(texts[15 : texts.index("3 \u2713")]) == names[1]  # a long name in lines
    assert texts[texts.index("3 \u2713") + 4] == "$x$_\\xff"
    assert "mixed, no match in the gallery" in texts
    legend = texts.index("\u2713 same person")
    assert texts[legend + 1] == "\u2717 another person" and "(smaller is more alike)" in " ".join(texts[legend:])
    drawn.canvas.draw()  # a name is no formula
    frames = [panel.spines["left"] for panel in drawn.axes if panel.spines["left"].get_visible()]
    colours = [to_hex(frame.get_edgecolor()).upper() for frame in frames]
    assert colours == [WRONG, RIGHT, RIGHT, RIGHT, WRONG]
    assert [frame.get_linestyle() in ("solid", "-") for frame in frames] == [False, True, True, True, False]
