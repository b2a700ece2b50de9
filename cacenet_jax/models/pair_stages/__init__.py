"""Pair stages: modules that compare two images, behind the interface defined in base.py.

Read base.py first, then a small stage such as keypoints.py or evidence.py, and finally conditional/, the paper's
stage. `config.model.pair_stage` selects a stage by name and `config.model.pair` sets its fields. To add a stage,
write a module and list it in `_PLACES`, or set `config.model.pair_stage=MODULE:CLASS` to use any subclass of
`PairStage`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from cacenet_jax.errors import UserError
from cacenet_jax.models.pair_stages.base import Alarm, Individual, PairStage, PairView
from cacenet_jax.models.registry import Registry

__all__ = ["STAGES", "Alarm", "Individual", "PairStage", "PairView", "build", "check", "fields"]

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
    """Return the stage fields that `config.model.pair` may set, with their defaults.

    Raises:
        UserError: if the stage is unknown.
    """
    given = {field.name for field in dataclasses.fields(PairStage)}
    return {field.name: field.default for field in dataclasses.fields(STAGES.resolve(name)) if field.name not in given}


def check(name: str, given: Mapping[str, Any]) -> None:
    """Validate the name of a stage and the names and values of its fields.

    Raises:
        UserError: if the stage or one of the fields is unknown, or if a value is invalid.
    """
    known = fields(name)
    if unknown := sorted(set(given) - set(known)):
        expected = ", ".join(sorted(known)) or "none"
        raise UserError(
            f"pair stage {name!r} has no field {', '.join(unknown)}, expected one of its fields ({expected}); leave it out"
        )
    STAGES.resolve(name)(channels=1, embed_dim=1, num_identities=1, **given).validate()


def build(name: str, **given: Any) -> PairStage:
    """Build a pair stage.

    Args:
        name: registered name, or MODULE:CLASS.
        **given: the fields common to all stages (see `PairStage`), plus any stage-specific fields to override.

    Raises:
        UserError: under the same conditions as `check`.
    """
    common = {field.name for field in dataclasses.fields(PairStage)}
    check(name, {field: value for field, value in given.items() if field not in common})
    return STAGES.resolve(name)(**given)
