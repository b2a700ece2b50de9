"""CACE-Net on Market-1501 without a GPU: a small ResNet trained from scratch on 128 x 64 images, on two CPU cores.

    python -m cacenet_jax.main --config=configs/market1501_cpu.py --config.data.root=data --workdir=workdirs/market1501_cpu

The recipe is that of configs/synthetic.py and was not tuned on Market-1501. Measured: individual 46.50 mAP / 67.81
rank-1, mixed 47.96 / 69.63, in 42 minutes on one core. See docs/results.md for details. Longer training was not tried.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.epochs = 18
    config.log_every = 20
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 128
    config.data.width = 64
    config.data.num_ids = 8
    config.augment.pad = 5
    config.model.backbone = "resnet_small"
    config.model.embed_dim = 256
    config.model.pair = ConfigDict({"filters": "untied", "keys": "correlation", "clue_weight": 0.9})
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 32
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 2.0
    config.eval.mix = 0.5
    return apply(config, variant)
