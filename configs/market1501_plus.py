"""Second stage on configs/market1501_cpu.py: the trained network is frozen and learns to look at two images together.

    python -m cacenet_jax.main --config=configs/market1501_cpu.py --config.data.root=data --workdir=workdirs/market1501_cpu
    python -m cacenet_jax.main --config=configs/market1501_plus.py --config.init_from=workdirs/market1501_cpu \
        --config.data.root=data --workdir=workdirs/market1501_plus

The recipe of configs/synthetic_plus.py; docs/conditional_gain.md is the study. Measured, mAP / rank-1, one run:
individual 46.50 / 67.81 before and after, conditional 44.91 / 67.87 before and 51.00 / 72.98 after, mixed 47.96 / 69.63
before and 51.55 / 73.75 after; 10 minutes on one core and 81 s for the evaluation, on top of the first stage's 42.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import second_stage


def get_config() -> ConfigDict:
    config = second_stage("workdirs/market1501_cpu")
    config.epochs = 6
    # The data and the network of the first stage.
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 128
    config.data.width = 64
    config.model.backbone = "resnet_small"
    config.model.embed_dim = 256
    return config
