"""Differences between the outputs of an artefact and of the model, and their bounds."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from cacenet_jax.errors import UserError

# Largest allowed difference of an array by the compute dtype of the maps, relative to the largest value of the array if
# that exceeds 1. Differences measured in float32 are 1e-6 or less.
BOUNDS = {"float32": 1e-5, "bfloat16": 5e-2}
# Rounding decides ties in a top-K selection. These bounds apply to the selection and the distances that depend on it.
_CHOICES = 1e-2
_DISTANCE_OF_CHOICES = 1e-3


def difference(actual: Any, expected: Any) -> float:
    """Return the largest difference between two arrays, relative to the largest expected value if that exceeds 1.

    It is infinite if the shapes differ or `actual` is not finite.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def differences(
    actual: Mapping[str, Any], expected: Mapping[str, Any], selections: Collection[str] = ()
) -> dict[str, float]:
    """Compute the `difference` of each named array; it is infinite for a missing array.

    Args:
        actual: outputs of an artefact.
        expected: outputs of the model.
        selections: names of arrays that hold a top-K selection (`PairStage.selection_terms`); their difference is the
            fraction of elements that differ.
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
    """Return the largest difference of each array over several checks."""
    return {name: max(one[name] for one in several) for name in several[0]}


def bound(name: str, dtype: str, selections: Collection[str] = ()) -> float:
    """Return the largest allowed difference of an array.

    Args:
        name: name of the array.
        dtype: compute dtype of the maps, config.model.dtype.
        selections: as in `differences`.
    """
    if name in selections:
        return _CHOICES
    return max(BOUNDS[dtype], _DISTANCE_OF_CHOICES) if selections and name == "distance" else BOUNDS[dtype]


def require(artefact: str, differences: Mapping[str, float], dtype: str, selections: Collection[str] = ()) -> None:
    """Raise UserError if any difference exceeds its bound; `dtype` and `selections` are as in `bound`."""
    for name, value in differences.items():
        allowed = bound(name, dtype, selections)
        if not value <= allowed:
            raise UserError(
                f"{artefact}: found {name} {value:.1e} from the model's, expected at most {allowed:.0e}; nothing was "
                "written; export on another machine or with other versions (docs/tested_versions.md)"
            )


def first(values: Mapping[str, Any], names: Iterable[str], count: int) -> dict[str, Any]:
    """Return the first `count` rows of the named arrays."""
    return {name: values[name][:count] for name in names}


def one(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the first row of the named arrays, without leading axis; it is the query of the check values."""
    return {name: values[name][0] for name in names}


def summary(differences: Mapping[str, float]) -> str:
    """Summarise `differences` in one line."""
    return "largest difference from the model: " + ", ".join(
        f"{name} {value:.1e}" for name, value in differences.items()
    )
