"""Config file used when --config is omitted: reads config.json from the workdir given as its argument."""

from pathlib import Path

from ml_collections import ConfigDict

from cacenet_jax.run.completion import read_config


def get_config(workdir: str) -> ConfigDict:
    """Return the config recorded in a workdir; every field can be overridden."""
    return read_config(Path(workdir).expanduser(), "--workdir")
