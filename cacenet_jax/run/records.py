"""Recorded configs compared: the fields in which two runs differ."""

import json
from typing import Any

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.run.choices import CHOICES, flatten, to_dict

# Fields that may change when a run resumes: where things are, how often they are reported, how they are computed and scored.
MAY_CHANGE_ON_RESUME = (
    "eval", "devices", "parallel", "log_every", "checkpoint_every", "data.root", "data.dir", "data.parts",
    "data.workers",
    "model.pair_memory_mib", "visualize", "export",
)  # fmt: skip


def effective(config: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted fields of a config as JSON keeps them, with the defaults of what it leaves out.

    Two configs of one experiment have equal effective fields, also where only one of them spells out a default.

    Args:
        config: nested, as `to_dict` gives it or config.json holds it. A field that an earlier version did not record takes
            its default, which is what that version did.
    """
    given = dict(flatten(config))
    flat = dict(flatten(to_dict(paper()))) | given
    for choice, defaults in experiment.defaults(flat["model.backbone"], flat["model.pair_stage"]).items():
        flat = {f"{CHOICES[choice]}.{name}": value for name, value in defaults.items()} | flat
    return json.loads(json.dumps(flat, default=repr))


def differences(recorded: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return `field: recorded -> current` of each field that makes two runs different ones.

    Fields of a choice are compared where the choice is the same.

    Args:
        recorded: nested, from config.json.
        current: nested, of this run.
    """
    old, new = effective(recorded), effective(current)
    ignored = [*MAY_CHANGE_ON_RESUME, *(fields for choice, fields in CHOICES.items() if old[choice] != new[choice])]
    compared = [
        field
        for field in sorted(old.keys() | new.keys())
        if not any(field == other or field.startswith(f"{other}.") for other in ignored)
    ]
    return [f"{f}: {old.get(f)!r} -> {new.get(f)!r}" for f in compared if old.get(f) != new.get(f)]
