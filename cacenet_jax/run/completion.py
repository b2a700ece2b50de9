"""Completion of a config: expansion of `~` in paths, and inheritance from a first stage.

A second stage or a fine-tuning starts from the network of another workdir (config.init_from). If its config leaves
data.name, model.backbone or model.pair_stage empty (None), they and the related fields are inherited from the config.json
of that workdir. Does not import jax.
"""

import copy
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cacenet_jax.config import paper
from cacenet_jax.data import json_files
from cacenet_jax.errors import UserError
from cacenet_jax.run.choices import CHOICES, flatten, lookup, override

PATHS = ("init_from", "pretrained", "data.root", "data.dir", "data.parts")
# Fields that a second stage may leave empty, then fields that are inherited only together with a choice, because they
# are specific to a data set.
_TAKEN = (
    "data.dir", "data.height", "data.width", "data.val_share", "data.val_seed", "data.val_group", "data.on_error",
    "augment.pad", "model.embed_dim", "model.pooling", "model.relu",
    "model.head_bias", "model.embedding_relu",
)  # fmt: skip
_TAKEN_WITH = {"data.name": ("data.root", "data.parts"), "model.backbone": (), "model.pair_stage": ()}


def leave_to_first_stage(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config with data and network left empty, to be inherited from config.init_from."""
    config = copy.deepcopy(config)
    for field in (*_TAKEN_WITH, *_TAKEN):
        group, _, name = field.partition(".")
        config[group][name] = placeholder(type(config[group][name]))  # keeps the type, for parsing overrides
    return config


def complete(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config with `~` expanded and empty fields inherited from the first stage.

    Fields that have a value keep it. Completing a complete config therefore changes nothing.

    Raises:
        UserError: the config has empty fields, but config.init_from is empty or is not a workdir.
    """
    paths = {field: lookup(config, field) for field in PATHS}
    config = override(config, {f: os.path.expanduser(path) for f, path in paths.items() if path and path[0] == "~"})
    wanted = [field for field in (*_TAKEN_WITH, *_TAKEN) if lookup(config, field) is None]
    if not wanted:
        return config
    if not config.init_from:
        raise UserError(
            "config.init_from: not given, expected the workdir of the first stage, whose data and network this config "
            "takes; add --config.init_from=WORKDIR"
        )
    first = read_config(Path(config.init_from), "config.init_from")
    for choice in set(wanted) & set(_TAKEN_WITH):
        fields = CHOICES[choice]
        own = lookup(first, fields).to_dict() | lookup(config, fields).to_dict()
        config = override(config, {choice: lookup(first, choice)} | {f"{fields}.{name}": own[name] for name in own})
        wanted += [field for field in _TAKEN_WITH[choice] if lookup(config, field) is None]
    return override(config, {field: lookup(first, field) for field in wanted})


def read_config(workdir: Path, field: str) -> ConfigDict:
    """Return the config that a run recorded in its workdir.

    Args:
        workdir: workdir of the run.
        field: flag or field that names the workdir, for error messages.

    Raises:
        UserError: config.json is missing or does not contain a config of this version.
    """
    path = workdir / "config.json"
    recorded = json_files.read(path, "restore it or choose another workdir")
    if recorded is None:
        raise UserError(
            f"{field}: no config.json in {workdir}, expected the workdir of a run; train it first, or correct the path"
        )
    return from_dict(recorded, str(path))


def from_dict(recorded: dict[str, Any], origin: str) -> ConfigDict:
    """Convert a recorded nested dictionary to a config.

    Args:
        recorded: nested dictionary, from `cacenet_jax.run.choices.to_dict`; absent fields take their defaults.
        origin: file that it was read from, for error messages.

    Raises:
        UserError: a field does not exist in this version, or a value has the wrong type.
    """
    try:
        return override(paper(), dict(flatten(recorded)))
    except (KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split("Other fields present")[0].split())
        raise UserError(
            f"{origin}: not a config of this version ({reason}), expected fields of cacenet_jax/config.py; train again"
        ) from error
