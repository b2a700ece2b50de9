"""tiny.py with the released recipe; resnet_tiny has no room for non-local blocks."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from cacenet_jax.config import released


def get_config() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny, recipe = module.get_config(), released()
    for name in ("filters", "affinity", "pooling", "shared_encoder", "relu", "dropout"):
        tiny.model[name] = recipe.model[name]
    tiny.loss = recipe.loss
    return tiny
