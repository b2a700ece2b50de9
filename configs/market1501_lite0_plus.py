"""Second stage on configs/market1501_lite0.py, or with `:cpu` on market1501_lite0_cpu.py, which have the commands.

The frozen network learns to look at two images together; docs/conditional_gain.md is the study, docs/results.md has what
was measured.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import second_stage
from cacenet_jax.errors import UserError


def get_config(where: str = "gpu") -> ConfigDict:
    if where not in ("gpu", "cpu"):
        raise UserError(f"configs/market1501_lite0_plus.py: found argument {where!r}, expected gpu or cpu; choose one")
    on_cpu = where == "cpu"
    config = second_stage("workdirs/lite0_cpu" if on_cpu else "workdirs/lite0")
    config.epochs = 2 if on_cpu else 6
    # The data and the network of the first stage.
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 128 if on_cpu else 256
    config.data.width = 64 if on_cpu else 128
    config.augment.pad = 5 if on_cpu else 10
    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_fields = "momentum=0.9"
    config.model.embed_dim = 512
    return config
