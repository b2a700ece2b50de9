"""Pair stages by name, on the constructor of `CACENet` that knows them all; models/pair_stages takes this over.

A table of stages with the defaults of their fields, and the values that a field of words may have.
"""

from collections.abc import Mapping
from typing import Any

from cacenet_jax.errors import UserError
from cacenet_jax.models.pair_stages.conditional.alignment import STRATEGIES
from cacenet_jax.run.choices import NO_PAIR_STAGE

_KEYS = ("raw", "l2", "standardised", "correlation")
_STAGES: dict[str, dict[str, Any]] = {
    "conditional": {
        "alignment": "attention", "neighbours": 1, "kind": "discrepancy", "filters": "tied", "keys": "raw", "threshold": 0.3,
        "clue_weight": 0.0, "distance": "cosine",
    },
    "released": {"shared_encoder": True, "distance": "cosine"},
    "keypoints": {"keys": "raw", "threshold": 0.3},
    "evidence": {"channels": 64},
}  # fmt: skip
_VALUES = {
    "alignment": STRATEGIES, "kind": ("discrepancy", "normal"), "filters": ("tied", "untied"), "keys": _KEYS,
    "distance": ("cosine",),
}  # fmt: skip


def defaults(name: str) -> dict[str, Any]:
    """Return the fields of a stage with their defaults. Raises UserError for an unknown name."""
    if name not in _STAGES:
        raise UserError(
            f"config.model.pair_stage: no pair stage {name!r}, expected one of {', '.join(_STAGES)} or none; choose one"
        )
    return dict(_STAGES[name])


def check(name: str, fields: Mapping[str, Any]) -> None:
    """Raises UserError, one line, for an unknown stage or field, or a value that the field cannot have."""
    known = defaults(name)
    for field, value in fields.items():
        if field not in known:
            raise UserError(
                f"pair stage {name!r} has no field {field}; fields are {', '.join(sorted(known))}; leave it out"
            )
        if field in _VALUES and value not in _VALUES[field]:
            raise UserError(
                f"pair stage {name!r}: {field}={value!r}, expected one of {', '.join(_VALUES[field])}; choose one of them"
            )
        if field not in _VALUES and (isinstance(value, str) or float(value) < 0):
            raise UserError(f"pair stage {name!r}: {field}={value!r}, expected a number of 0 or more; change it")
        if field == "clue_weight" and value > 1:
            raise UserError(f"pair stage {name!r}: {field}={value!r}, expected a value from 0 to 1; change it")


def _old_constructor(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of today's `CACENet` for a pair stage."""
    if name == NO_PAIR_STAGE:
        return {"pairs": False}
    check(name, fields)
    given = {field: value for field, value in fields.items() if field != "distance"}
    if name == "released":
        return {"filters": "residual", "keys": "bottleneck", "shared_encoder": True} | given
    if name == "evidence":
        return {"pair_score": name, "evidence_channels": given.get("channels", 64)}
    return {"pair_score": name} | given
