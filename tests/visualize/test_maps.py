"""What figure 4 draws: relative norms on one scale, and two differences, each on a symmetric scale of its own."""

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize

from cacenet_jax.visualize.maps import DIFFERENCES, NORMS, VISIBLE, figure, overlay, pair_figure, rows_of
from cacenet_jax.visualize.scores import NO_SCORES, Compared, Scores

RNG = np.random.default_rng(0)
QUERY = RNG.integers(0, 256, (16, 8, 3), np.uint8)
GALLERY = RNG.integers(0, 256, (3, 16, 8, 3), np.uint8)
OWN, GIVEN = RNG.uniform(4, 9, (4, 2)), RNG.uniform(1, 5, (3, 4, 2))


def test_overlay_is_the_colour_of_the_value_and_a_share_of_the_picture():
    grey = np.full((6, 4, 3), 77, np.uint8)
    found = overlay(grey, np.full((3, 2), 0.25), Normalize(0, 1), NORMS)
    colour = 255 * np.array(colormaps[NORMS](0.25)[:3])
    np.testing.assert_allclose(found, np.broadcast_to(0.7 * colour, found.shape), atol=1)
    # A position's centre has its own value, between two it changes.
    steps = overlay(np.zeros((8, 4, 3), np.uint8), np.array([[0.0], [1.0]]), Normalize(0, 1), NORMS)
    assert len(np.unique(steps[:, 0], axis=0)) == 6


SCORES = [Scores(0.1234, 0.2345, 0.3456), Scores(-0.00001, 1.0, 0.5), NO_SCORES]
COMPARED = [Compared(f"image_{g}.png", g == 0, f"rank {g + 1} \u2192 7", one) for g, one in enumerate(SCORES)]


def panels(drawn):
    return [np.asarray(panel.images[0].get_array()) for panel in drawn.axes if panel.images]


def words(drawn):
    return [text.get_text() for text in drawn.texts]


def limits(drawn):
    """The limits printed at each colour bar, smallest and largest label."""
    bars = [axes for axes in drawn.axes if axes.get_label() == "scale"]
    return [(axes.get_yticklabels()[0].get_text(), axes.get_yticklabels()[-1].get_text()) for axes in bars]


def test_figure_shows_relative_norms_and_two_differences():
    rows = rows_of(OWN, GIVEN)
    drawn = figure(QUERY, rows, GALLERY, COMPARED, "query.png")
    own = OWN / (OWN.sum() / 8)
    given = GIVEN / (GIVEN.sum() / 24)
    norms = Normalize(min(own.min(), given.min()), max(own.max(), given.max()))
    change = given - own
    apart = given - (given[0] + given[1] + given[2]) / 3
    symmetric = [Normalize(-abs(x).max(), abs(x).max()) for x in (change, apart)]
    expected = [QUERY, overlay(QUERY, own, norms, NORMS)]
    for g in range(3):
        expected += [GALLERY[g], overlay(QUERY, given[g], norms, NORMS)]
        expected += [overlay(QUERY, x[g], scale, DIFFERENCES) for x, scale in zip((change, apart), symmetric)]
    shown = panels(drawn)
    assert len(shown) == len(expected)
    for one, other in zip(shown, expected):
        np.testing.assert_allclose(one, other, atol=1)  # the last digit of a mean
    drawn.canvas.draw()
    expected = [(f"{-x:.3g}".replace("-", "\u2212"), f"{x:.3g}") for x in (abs(change).max(), abs(apart).max())]
    assert [tuple(x.replace("-", "\u2212") for x in pair) for pair in limits(drawn)[1:]] == expected


def test_figure_names_every_image_and_its_distances():
    texts = words(figure(QUERY, rows_of(OWN, GIVEN), GALLERY, COMPARED, "query.png"))
    assert texts.count("\u2713 same") == 1 and texts.count("\u2717 other") == 2
    for expected in ("1 \u2192 7", "0.1234", "0.2345", "0.3456", "0.0000", "1.0000", "image_0.png", "query.png",
                     "individual", "mixed", "ranks", "\u2713 same person", "\u2717 another person"):  # fmt: skip
        assert expected in texts, expected
    assert texts.count("\u2013") == 3


def test_a_part_of_the_figure_keeps_its_scales():
    rows = rows_of(OWN, GIVEN)
    whole = panels(figure(QUERY, rows, GALLERY, COMPARED))
    part = panels(figure(QUERY, rows.part(slice(1, 3)), GALLERY[1:], COMPARED[1:]))
    for one, other in zip(part, whole[:2] + whole[6:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_there_is_no_difference_to_see_the_figure_says_so():
    same = np.stack([OWN * (1 + 1e-5), OWN * (1 - 1e-5), OWN])
    drawn = figure(QUERY, rows_of(OWN, same), GALLERY, COMPARED)
    largest = 1e-5 * OWN.max() / OWN.mean()
    size = f"at most {100 * largest:.2g} per cent of the mean norm"
    sentence = f"Difference between the conditional maps: {size}, none to see."
    assert sentence in " ".join(words(drawn)) and largest < VISIBLE
    *_, last = panels(drawn)  # rounding errors are not magnified: nearly white, over the image
    np.testing.assert_allclose(last, overlay(QUERY, np.zeros((4, 2)), Normalize(-1, 1), DIFFERENCES), atol=6)
    different = " ".join(words(figure(QUERY, rows_of(OWN, GIVEN), GALLERY, COMPARED)))
    assert "none to see" not in different and different.count("the limit of its colours") == 2


def test_pair_figure_shows_both_images_on_common_scales():
    pair, own, given = np.stack([QUERY, GALLERY[0]]), np.stack([OWN, GIVEN[2]]), GIVEN[:2]
    drawn = pair_figure(pair, own, given, ("first.png", "second.png"), SCORES[0])
    own, given = (x / x.mean(axis=(1, 2), keepdims=True) for x in (own, given))
    norms = Normalize(min(own.min(), given.min()), max(own.max(), given.max()))
    most = abs(given - own).max()
    expected = []
    for i in range(2):
        expected += [pair[i], overlay(pair[i], own[i], norms, NORMS), overlay(pair[i], given[i], norms, NORMS)]
        expected += [overlay(pair[i], given[i] - own[i], Normalize(-most, most), DIFFERENCES)]
    for one, other in zip(panels(drawn), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1)
    narrow = pair_figure(pair, np.stack([OWN, GIVEN[2]]), GIVEN[:2], ("first.png", "second.png"), SCORES[0], 2)
    for one, other in zip(panels(narrow), panels(drawn), strict=True):
        np.testing.assert_array_equal(one, other)
    assert narrow.get_figwidth() < 4 < drawn.get_figwidth()
    texts = words(drawn)
    assert {"A: first.png", "B: second.png", "distances: individual 0.1234, pair 0.2345, mixed 0.3456"} <= set(texts)


def test_colours_can_be_told_apart_without_red_and_green():
    """Both maps keep their order in grey: brightness rises, or falls on either side of the middle."""
    bright = lambda name: cv2.cvtColor(
        np.float32(colormaps[name](np.linspace(0, 1, 64)))[None, :, :3], cv2.COLOR_RGB2LAB
    )[0]
    assert (np.diff(bright(NORMS)[:, 0]) > 0).all()
    both = bright(DIFFERENCES)[:, 0]
    assert (np.diff(both[4:31]) > 0).all() and (np.diff(both[33:60]) < 0).all()
