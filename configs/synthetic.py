"""The main example: CACE-Net trained from scratch on the built-in synthetic pedestrians, in minutes on two CPU cores.

    python -m cacenet_jax.main --config=configs/synthetic.py --workdir=workdirs/synthetic
    python -m cacenet_jax.main --config=configs/synthetic.py:baseline --workdir=workdirs/baseline     # no pair stage

This is the paper's method with three changes that make re-scoring effective on a small network: the untied filter of
equation 5, a graph of correlations above a learned threshold, and a clue distance (table 1, second row) with weight 0.9
in the pair distance. The recipe was chosen on the data of seeds 0 and 1, and the config uses the data of seed 2.
Measured mAP over three seeds: baseline 42.97, individual 44.14, mixed 45.08. See docs/results.md for details.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.epochs = 20
    config.eval_every = 5
    config.data.name = "synthetic_pedestrians"
    config.data.options = ConfigDict({"num_train_ids": 240, "num_test_ids": 80, "images_per_id": 12, "seed": 2})
    config.data.height = 128
    config.data.width = 64
    config.data.num_ids = 8
    config.data.val_share = 0.1
    config.augment.pad = 5
    config.model.backbone = "resnet_small"
    config.model.backbone_fields = ConfigDict({"width": 24})
    config.model.embed_dim = 128
    config.model.pair = ConfigDict({"filters": "untied", "keys": "correlation", "clue_weight": 0.9})
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 32
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 2.0
    config.eval.top_k = 50
    config.eval.mix = 0.5  # best value on the validation identities
    return apply(config, variant)
