"""How far two arrays are from each other, and what is too far."""

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.export import check


def test_differences_are_absolute_for_small_arrays_and_relative_for_large_ones():
    assert check.difference(np.array([0.5, 0.25]), np.array([0.5, 0.375])) == 0.125
    assert check.difference(np.array([100.0, -8.0]), np.array([100.0, -4.0])) == 0.04
    assert check.difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0


@pytest.mark.parametrize("found", [np.array([np.nan, 0]), np.array([np.inf, 0]), np.zeros(3), np.zeros((2, 1))])
def test_numbers_that_are_none_and_other_shapes_are_infinitely_far(found):
    assert check.difference(found, np.zeros(2)) == np.inf
    with pytest.raises(
        UserError, match="found embedding inf from the model's, expected at most 1e-05; nothing was written"
    ):
        check.require("x.onnx", check.differences({"embedding": found}, {"embedding": np.zeros(2)}), "float32")


def test_a_missing_array_is_infinitely_far_and_the_worst_of_several_checks_counts():
    expected = {"a": np.zeros(2), "b": np.ones(2)}
    first, second = check.differences({"a": np.ones(2)}, expected), check.differences(expected, expected)
    assert first == {"a": 1, "b": np.inf} and second == {"a": 0, "b": 0}
    assert check.worst(second, first) == first
    check.require("x", second, "float32")


def test_choices_between_level_neighbours_may_differ_a_little():
    expected = np.zeros((20, 20))
    found = expected.copy()
    found[3, 4] = 1  # one edge of 400
    of_choices = check.differences({"intra_NN": found}, {"intra_NN": expected}, selections={"intra_NN"})
    assert of_choices == {"intra_NN": 1 / 400}
    check.require("x", of_choices, "float32", selections={"intra_NN"})
    with pytest.raises(UserError, match="intra_NN"):
        check.require("x", check.differences({"intra_NN": found}, {"intra_NN": expected}), "float32")
    with pytest.raises(UserError, match="intra_NN"):
        everywhere = check.differences({"intra_NN": found + 1}, {"intra_NN": expected}, selections={"intra_NN"})
        check.require("x", everywhere, "float32", selections={"intra_NN"})


def test_bounds_are_those_of_the_compute_type():
    found = {"embedding": 1e-3}
    check.require("x", found, "bfloat16")
    with pytest.raises(UserError, match=r"embedding 1\.0e-03"):
        check.require("x", found, "float32")
