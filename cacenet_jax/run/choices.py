"""Overrides of config fields, from the command line, a recipe or a table row.

Three fields are choices with additional fields, which the config stores in a dictionary next to the choice. Changing
the choice empties this dictionary. This module does not import jax, so mistakes in flags are reported without delay.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Choice -> dictionary that holds its additional fields.
CHOICES = {"data.name": "data.options", "model.backbone": "model.backbone_fields", "model.pair_stage": "model.pair"}


def is_free(field: str) -> bool:
    """Return True if a dotted field belongs to a choice, so a config need not contain it."""
    return any(field.startswith(f"{fields}.") for fields in CHOICES.values())


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return a config as a plain nested dictionary with references resolved, as stored in config.json."""
    return config.copy_and_resolve_references().to_dict()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted field, value) for each leaf of a nested dictionary, in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(config: ConfigDict, field: str) -> Any:
    """Return the value of a dotted field."""
    for part in field.split("."):
        config = config[part]
    return config


def override(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a config with some values replaced.

    Args:
        config: config with all fields.
        values: new values by dotted field. Changing a choice drops the fields set for the old one. Fields of the new
            choice are set afterwards, regardless of the order of `values`.

    Raises:
        KeyError: a field does not exist.
        TypeError: a value has the wrong type.
    """
    config = copy.deepcopy(config)  # preserves the types of empty fields
    with config.unlocked():
        for choice, fields in CHOICES.items():
            if choice in values and values[choice] != lookup(config, choice):
                config.update_from_flattened_dict({choice: values[choice]})
                group, _, name = fields.partition(".")
                config[group][name] = ConfigDict()
        for field, value in values.items():
            if is_free(field):
                group, fields, name = field.split(".", 2)
                with config[group][fields].ignore_type():
                    config[group][fields][name] = value
    config.update_from_flattened_dict({f: value for f, value in values.items() if f not in CHOICES and not is_free(f)})
    for fields in CHOICES.values():
        lookup(config, fields).unlock()
    return config


def with_eval_dataset(config: ConfigDict) -> ConfigDict:
    """Return the config with data.name replaced by eval.data, for cross-domain evaluation.

    Keeps only the data.options that the other data set also supports, such as check_counts. Without eval.data, the
    config is returned unchanged.

    Raises:
        UserError: the data set does not exist.
    """
    name = config.eval.data
    if not name:
        return config
    from cacenet_jax.data.builders.prepare import builder_class  # imported late: loads data-reading libraries

    shared = {key: value for key, value in config.data.options.items() if key in builder_class(name).OPTIONS}
    return override(config, {"data.name": name} | {f"data.options.{key}": value for key, value in shared.items()})
