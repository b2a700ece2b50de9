"""Config of a published checkpoint, and config file used when --config is omitted with --mode=import."""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from ml_collections import ConfigDict

from cacenet_jax.pretrained.networks import fields_of, recognise
from cacenet_jax.pretrained.reading import read
from cacenet_jax.pretrained.sources import locate
from cacenet_jax.run.choices import override
from cacenet_jax.run.completion import complete
from cacenet_jax.run.config_files import resolve

# Number of training identities -> data set; 4,101 are those of all splits, torchreid's `combineall`.
DATA_SETS: Mapping[int, str] = MappingProxyType(
    {702: "dukemtmc_reid", 751: "market1501", 1041: "msmt17", 4101: "msmt17"}
)


def config_of(arrays: Mapping[str, np.ndarray], source: str) -> ConfigDict:
    """Return the config of the network in a published checkpoint.

    Args:
        arrays: arrays by name, from `pretrained.reading.read`.
        source: source of the weights, recorded as config.pretrained.

    Returns:
        The packaged config of its kind, with the fields that depend on the file. The data set is the one with as many
        training identities as the classifier; if there is none, that of the packaged config.

    Raises:
        UserError: the arrays are those of no known kind or backbone.
    """
    layout, plain = recognise(arrays, source)
    file, _, argument = resolve(layout.config).partition(":")
    spec = importlib.util.spec_from_file_location("published_config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    data_set = DATA_SETS.get(layout.identities(plain), config.data.name)
    fields = fields_of(layout, plain, source) | {"data.name": data_set, "pretrained": source}
    return complete(override(config, fields))


def get_config(source: str) -> ConfigDict:
    """Return the config of the network in config.pretrained; every field can be overridden."""
    return config_of(read(locate(source)), source)
