"""The clue similarity against a literal loop over regions, in value and gradient, and where it could break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import finite_difference, literal_clues

from cacenet_jax.models.clues import clue_grid, clue_similarity, image_clues


def similarity(regions_u, regions_v, threshold):
    return clue_similarity(image_clues(regions_u), image_clues(regions_v), threshold)


def regions(case):
    rng = np.random.default_rng(3)
    u, v = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    return {
        "different": (u, v, 0.2),
        "one region": (u[:1], v[:1] * np.sign(u[:1] * v[:1]), 0.1),
        "a region of zeros": (np.vstack([u, np.zeros(4)]), v, 0.3),
        "nothing matches": (u, v, 2.0),
        "identical": (u, u, 0.5),
        "everything matches": (u, v, -2.0),
    }[case]


CASES = ("different", "one region", "a region of zeros", "nothing matches", "identical", "everything matches")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(x64, case):
    u, v, threshold = regions(case)
    np.testing.assert_allclose(similarity(u, v, threshold), literal_clues(u, v, threshold), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_finite_and_that_of_the_loop(x64, case):
    u, v, threshold = regions(case)
    gradients = jax.grad(similarity, (0, 1, 2))(jnp.asarray(u), jnp.asarray(v), jnp.asarray(threshold))
    assert all(np.isfinite(g).all() for g in gradients)
    if case in ("different", "one region", "everything matches"):  # the loop has a gradient there
        direction = np.random.default_rng(5).standard_normal(u.shape)
        expected = finite_difference(lambda x: literal_clues(x, v, threshold), u, direction)
        np.testing.assert_allclose((gradients[0] * direction).sum(), expected, rtol=1e-6, atol=1e-9)


def test_symmetric_and_one_for_a_pair_of_equal_regions(x64):
    u, v, threshold = regions("different")
    np.testing.assert_allclose(similarity(u, v, threshold), similarity(v, u, threshold), rtol=1e-12)
    np.testing.assert_allclose(similarity(np.eye(4), 3 * np.eye(4), 0.5), 1.0, rtol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_grid_is_the_loop_over_pairs(x64, block):
    regions_BNF = np.random.default_rng(4).standard_normal((3, 5, 4))
    clues = jax.vmap(image_clues)(jnp.asarray(regions_BNF))
    found = clue_grid(clues, clues, jnp.asarray(0.2), block)
    expected = [[literal_clues(u, v, 0.2) for v in regions_BNF] for u in regions_BNF]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
