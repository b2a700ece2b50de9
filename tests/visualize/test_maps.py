"""What figure 4 draws: norms on one scale, differences to their mean on another."""

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize

from cacenet_jax.visualize.maps import DIFFERENCES, NORMS, figure, overlay

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


def test_figure_shows_norms_and_differences_to_the_mean():
    drawn = figure(QUERY, OWN, GALLERY, GIVEN, np.array([True, False, False]), ["rank 1", "rank 2", "rank 3"])
    shown = [np.asarray(panel.images[0].get_array()) for panel in drawn.axes if panel.images]
    norms = Normalize(GIVEN.min(), OWN.max())
    away = GIVEN - (GIVEN[0] + GIVEN[1] + GIVEN[2]) / 3
    most = max(abs(x) for x in away.ravel().tolist())
    expected = [QUERY, overlay(QUERY, OWN, norms, NORMS)]
    for g in range(3):
        expected += [GALLERY[g], overlay(QUERY, GIVEN[g], norms, NORMS)]
        expected += [overlay(QUERY, away[g], Normalize(-most, most), DIFFERENCES)]
    assert len(shown) == len(expected)
    for one, other in zip(shown, expected):
        np.testing.assert_array_equal(one, other)
    texts = [text.get_text() for text in drawn.texts]
    assert texts.count("\u2713 same") == 1 and texts.count("\u2717 other") == 2 and "rank 3" in texts


def test_colours_can_be_told_apart_without_red_and_green():
    """Both maps keep their order in grey: brightness rises, or falls on either side of the middle."""
    bright = lambda name: cv2.cvtColor(
        np.float32(colormaps[name](np.linspace(0, 1, 64)))[None, :, :3], cv2.COLOR_RGB2LAB
    )[0]
    assert (np.diff(bright(NORMS)[:, 0]) > 0).all()
    both = bright(DIFFERENCES)[:, 0]
    assert (np.diff(both[4:31]) > 0).all() and (np.diff(both[33:60]) < 0).all()
