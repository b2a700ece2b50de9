"""Comparison of recorded configs."""

import json
from typing import Any

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.run.choices import CHOICES, flatten, to_dict

# Fields that may change when a run resumes: paths, intervals, parallelism, memory limits, evaluation and output.
MAY_CHANGE_ON_RESUME = (
    "eval", "devices", "parallel", "log_every", "checkpoint_every", "checkpoints_kept", "grace_s", "data.root", "data.dir",
    "data.parts",
    "data.workers",
    "model.pair_memory_mib", "visualize", "export",
)  # fmt: skip


def effective(config: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted fields of a config as JSON values, including the defaults of absent fields.

    Two configs of the same experiment have equal effective fields, even if only one of them spells out a default.

    Args:
        config: nested dictionary, from `to_dict` or config.json. Fields that an earlier version did not record take
            their defaults, which reproduce the behaviour of that version.
    """
    given = dict(flatten(config))
    flat = dict(flatten(to_dict(paper()))) | given
    for choice, defaults in experiment.defaults(flat["model.backbone"], flat["model.pair_stage"]).items():
        flat = {f"{CHOICES[choice]}.{name}": value for name, value in defaults.items()} | flat
    return json.loads(json.dumps(flat, default=repr))


def has_form(config: dict[str, Any]) -> bool:
    """Return True if a recorded config has dictionaries where a config has groups, and names where it has choices."""
    groups = [name for name, value in to_dict(paper()).items() if isinstance(value, dict)]
    if not all(isinstance(config.get(name, {}), dict) for name in groups):
        return False
    choices = [choice.partition(".") for choice in CHOICES]
    return all(isinstance(config.get(group, {}).get(name, ""), str) for group, _, name in choices)


def differences(recorded: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return `field: recorded -> current` for each field that makes two runs different experiments.

    Fields that belong to a choice are compared only if both configs make the same choice.

    Args:
        recorded: nested dictionary from config.json.
        current: nested dictionary of the current config.
    """
    old, new = effective(recorded), effective(current)
    ignored = [*MAY_CHANGE_ON_RESUME, *(fields for choice, fields in CHOICES.items() if old[choice] != new[choice])]
    compared = [
        field
        for field in sorted(old.keys() | new.keys())
        if not any(field == other or field.startswith(f"{other}.") for other in ignored)
    ]
    return [f"{f}: {old.get(f)!r} -> {new.get(f)!r}" for f in compared if old.get(f) != new.get(f)]
