"""The clue distance against a literal loop over regions, in value and gradient, and where it could break."""

import jax
import numpy as np
import pytest
from oracles import finite_difference, literal_clues

from cacenet_jax.models.pair_stages.conditional.clues import clue_distance, image_clues
from cacenet_jax.models.pair_stages.grids import distance_grid


@jax.jit
def distance(regions_u, regions_v):
    return clue_distance(image_clues(regions_u), image_clues(regions_v))


gradient = jax.jit(jax.grad(distance, (0, 1)))  # compiled once a shape, not once a case


def regions(case):
    rng = np.random.default_rng(3)
    u, v = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    return {
        "different": (u, v),
        "one region": (u[:1], v[:1]),
        "a region of zeros": (np.vstack([u, np.zeros(4)]), v),
        "nothing but zeros": (0 * u, v),
        "opposite": (np.abs(u), -np.abs(v)),
        "identical": (u, u),
    }[case]


CASES = ("different", "one region", "a region of zeros", "nothing but zeros", "opposite", "identical")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(x64, case):
    u, v = regions(case)
    # Of equal images only rounding is left, and its fourth root is large.
    np.testing.assert_allclose(distance(u, v), literal_clues(u, v), rtol=1e-12, atol=1e-3 if case == "identical" else 0)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_finite_and_that_of_the_loop(x64, case):
    u, v = regions(case)
    gradients = gradient(u, v)
    assert all(np.isfinite(g).all() for g in gradients)
    if case in ("different", "one region", "opposite"):  # the loop has a gradient there
        direction = np.random.default_rng(5).standard_normal(u.shape)
        expected = finite_difference(lambda x: literal_clues(x, v), u, direction)
        np.testing.assert_allclose((gradients[0] * direction).sum(), expected, rtol=1e-6, atol=1e-9)


def test_equal_images_are_no_distance_apart_with_a_finite_gradient():
    u = np.random.default_rng(3).standard_normal((32, 16)).astype(np.float32)
    assert abs(distance(u, u)) < 0.03
    assert all(np.isfinite(g).all() for g in gradient(u, u))


def test_the_region_that_matches_worst_decides(x64):
    """Many small differences weigh less than a large one with the same sum: the case of look-alikes."""
    eye = np.eye(8)
    turn = lambda angle: np.cos(angle) * eye[0] + np.sin(angle) * eye[7]
    base = np.stack([eye[0], eye[1], eye[2], eye[3]])
    one_clue, small = base.copy(), base.copy()
    one_clue[0] = turn(np.arccos(0.6))
    for i in range(4):
        small[i] = np.cos(np.arccos(0.9)) * eye[i] + np.sin(np.arccos(0.9)) * eye[7]
    assert distance(base, one_clue) > 1.5 * distance(base, small)
    np.testing.assert_allclose(distance(base, one_clue), distance(one_clue, base), rtol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_grid_is_the_loop_over_pairs(x64, block):
    regions_BNF = np.random.default_rng(4).standard_normal((3, 5, 4))
    clues = jax.jit(jax.vmap(image_clues))(regions_BNF)
    expected = [[literal_clues(u, v) for v in regions_BNF] for u in regions_BNF]
    found = jax.jit(distance_grid, static_argnums=(0, 2))(clue_distance, clues, block)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-3)
