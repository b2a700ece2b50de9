"""The config file of a mode without --config: the config.json of its workdir, which is the argument."""

from pathlib import Path

from ml_collections import ConfigDict

from cacenet_jax.run.completion import read_config


def get_config(workdir: str) -> ConfigDict:
    """Return the config that a run recorded in its workdir, every field open to an override."""
    return read_config(Path(workdir).expanduser(), "--workdir")
