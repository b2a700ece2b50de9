"""Pair stages: what a network makes of two images together, each behind the interface of base.py.

Read base.py first, then a small stage, keypoints.py or evidence.py, then conditional/, the paper's. A stage is chosen by
name, `config.model.pair_stage`, and its fields by `config.model.pair`; a new one is a file and a line of `_PLACES`, or
any class that derives from `PairStage` by its place, `config.model.pair_stage=MODULE:CLASS`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from cacenet_jax.errors import UserError
from cacenet_jax.models.pair_stages.base import Individual, PairStage, PairView
from cacenet_jax.models.registry import Registry

__all__ = ["STAGES", "Individual", "PairStage", "PairView", "build", "check", "fields"]

STAGES: Registry[type[PairStage]] = Registry(
    "config.model.pair_stage",
    "class",
    lambda value: isinstance(value, type) and issubclass(value, PairStage),
    "a class that derives from cacenet_jax.models.pair_stages.PairStage",
)
_PLACES = {
    "conditional": "conditional.stage:ConditionalStage",
    "released": "released:ReleasedStage",
    "keypoints": "keypoints:KeyPointStage",
    "evidence": "evidence:EvidenceStage",
}
for _name, _place in _PLACES.items():
    _module, _, _kind = _place.partition(":")
    STAGES.register(_name, getattr(importlib.import_module(f"{__name__}.{_module}"), _kind))


def fields(name: str) -> dict[str, Any]:
    """Return the fields of a stage that `config.model.pair` may set, with their defaults.

    Raises:
        UserError: there is no such stage.
    """
    given = {field.name for field in dataclasses.fields(PairStage)}
    return {field.name: field.default for field in dataclasses.fields(STAGES.resolve(name)) if field.name not in given}


def check(name: str, given: Mapping[str, Any]) -> None:
    """Check the name of a stage, and the names and values of its fields.

    Raises:
        UserError: there is no such stage, it lacks one of the fields, or it refuses a value.
    """
    known = fields(name)
    if unknown := sorted(set(given) - set(known)):
        expected = ", ".join(sorted(known)) or "none"
        raise UserError(
            f"pair stage {name!r} has no field {', '.join(unknown)}, expected one of its fields ({expected}); leave it out"
        )
    STAGES.resolve(name)(channels=1, embed_dim=1, num_identities=1, **given).validate()


def build(name: str, **given: Any) -> PairStage:
    """Build a stage.

    Args:
        name: registered name, or MODULE:CLASS.
        **given: the fields that every stage has, see `PairStage`, and its own where they differ from the defaults.

    Raises:
        UserError: as in `check`, or a value that the stage refuses.
    """
    common = {field.name for field in dataclasses.fields(PairStage)}
    check(name, {field: value for field, value in given.items() if field not in common})
    return STAGES.resolve(name)(**given)
