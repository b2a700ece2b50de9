"""Differences of an artefact's outputs from the model's, and their bounds."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from cacenet_jax.errors import UserError

# Largest difference of an array, relative to its largest value where that exceeds 1, by the type that the maps are computed
# in. Measured are 1e-6 and less in float32.
BOUNDS = {"float32": 1e-5, "bfloat16": 5e-2}
# The K most similar positions are a choice: where two are level, rounding decides. So much of what follows may differ.
_CHOICES = 1e-2
_DISTANCE_OF_CHOICES = 1e-3


def difference(actual: Any, expected: Any) -> float:
    """Largest difference of two arrays, relative to the largest value where that exceeds 1; NaN is infinitely far."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def differences(
    actual: Mapping[str, Any], expected: Mapping[str, Any], selections: Collection[str] = ()
) -> dict[str, float]:
    """`difference` of each array by name; an array that is missing is infinitely far.

    Args:
        actual: outputs of an artefact.
        expected: outputs of the model.
        selections: names of arrays that hold a top-K selection (`PairStage.selection_terms`); their difference is the
            fraction of other choices.
    """
    result = {}
    for name, value in expected.items():
        if name not in actual:
            result[name] = float("inf")
        elif name in selections and np.shape(actual[name]) == np.shape(value):
            result[name] = float((np.abs(np.asarray(actual[name]) - np.asarray(value)) > 1e-3).mean())
        else:
            result[name] = difference(actual[name], value)
    return result


def worst(*several: Mapping[str, float]) -> dict[str, float]:
    """The largest of several checks, array by array."""
    return {name: max(one[name] for one in several) for name in several[0]}


def bound(name: str, dtype: str, selections: Collection[str] = ()) -> float:
    """Return the largest difference that an array may have.

    Args:
        name: of the array.
        dtype: compute type of the maps, config.model.dtype.
        selections: as in `differences`.
    """
    if name in selections:
        return _CHOICES
    return max(BOUNDS[dtype], _DISTANCE_OF_CHOICES) if selections and name == "distance" else BOUNDS[dtype]


def require(artefact: str, differences: Mapping[str, float], dtype: str, selections: Collection[str] = ()) -> None:
    """Raise UserError if an artefact is too far from the model; arguments as in `bound`."""
    for name, value in differences.items():
        allowed = bound(name, dtype, selections)
        if not value <= allowed:
            raise UserError(
                f"{artefact}: found {name} {value:.1e} from the model's, expected at most {allowed:.0e}; nothing was "
                "written; export on another machine or with other versions (docs/tested_versions.md)"
            )


def first(values: Mapping[str, Any], names: Iterable[str], count: int) -> dict[str, Any]:
    """The first `count` rows of the arrays of these names."""
    return {name: values[name][:count] for name in names}


def one(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The first row of the arrays of these names, without leading axis: the query of the stored values."""
    return {name: values[name][0] for name in names}


def summary(differences: Mapping[str, float]) -> str:
    """Summarise `differences` in a line."""
    return "largest difference from the model: " + ", ".join(
        f"{name} {value:.1e}" for name, value in differences.items()
    )
