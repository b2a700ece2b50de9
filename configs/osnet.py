"""OSNet on Market-1501: import of torchreid's checkpoints, and training from one of them or from ImageNet weights.

    python -m cacenet_jax.main --mode=import --config.pretrained=osnet_x0_25_market1501.pth --workdir=workdirs/osnet
    python -m cacenet_jax.main --mode=evaluate --workdir=workdirs/osnet --config.data.root=data
    python -m cacenet_jax.main --config=configs/second_stage.py --config.init_from=workdirs/osnet \
        --workdir=workdirs/osnet_second

`--mode=import` reads width and variant from the file and needs no --config. A variant is selected by the argument, for
example `--config=configs/osnet.py:osnet_ain_x1_0`; the default is osnet_x0_25. The individual head is torchreid's: an
embedding layer with a bias, batch norm and a ReLU that belongs to the embedding.

Paper: https://arxiv.org/abs/1905.00953. Weights: https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper


def get_config(backbone: str = "osnet_x0_25") -> ConfigDict:
    config = paper()
    config.epochs = 60
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    config.data.height = 256
    config.data.width = 128
    config.data.num_ids = 16
    config.model.backbone = backbone
    config.model.pair_stage = "none"
    config.model.embed_dim = 512
    config.model.head_bias = True
    config.model.embedding_relu = True
    config.loss.margin = 0.3
    config.loss.label_smoothing = 0.1
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    return config
