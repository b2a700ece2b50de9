"""tiny.py with the released recipe; resnet_tiny has no room for non-local blocks."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from cacenet_jax.reproduce.variants import apply


def get_config() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = apply(module.get_config(), "released")
    config.model.backbone_fields = ConfigDict()
    return config
