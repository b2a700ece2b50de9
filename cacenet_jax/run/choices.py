"""Changes to a config: dotted fields and their values, of a command line, a recipe or a row of a table.

Three fields are choices that bring fields of their own, which the config keeps in a dictionary beside them. The dictionary
belongs to the choice: changing the choice empties it. Imports no jax, so that a mistake in a flag is reported at once.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Choice -> dictionary of its fields.
CHOICES = {"data.name": "data.options", "model.backbone": "model.backbone_fields", "model.pair_stage": "model.pair"}


def is_free(field: str) -> bool:
    """Return whether a dotted field is one of a choice's own, which a config may hold or not."""
    return any(field.startswith(f"{fields}.") for fields in CHOICES.values())


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return the plain nested dictionary of a config, references resolved, as config.json holds it."""
    return config.copy_and_resolve_references().to_dict()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted field, value) of a nested dictionary, in the order of the fields."""
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
    """Return a copy of a config with other values.

    Args:
        config: of every field.
        values: dotted field to value. A choice that changes loses the fields that the config set for the old one; fields
            of the choice in `values` are set after that, whatever their order.

    Raises:
        KeyError: there is no such field.
        TypeError: a value of another type.
    """
    config = copy.deepcopy(config)  # keeps the types of fields that are empty
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
    """Return the config with the data set of eval.data in place of its own: a cross-domain test.

    Of data.options those stay that the other data set has too, such as check_counts.

    Raises:
        UserError: there is no such data set.
    """
    name = config.eval.data
    if not name:
        return config
    from cacenet_jax.data.builders.prepare import builder_class  # here: it waits for libraries that read data

    shared = {key: value for key, value in config.data.options.items() if key in builder_class(name).OPTIONS}
    return override(config, {"data.name": name} | {f"data.options.{key}": value for key, value in shared.items()})
