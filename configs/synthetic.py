"""The main job: CACE-Net on the embedded synthetic pedestrians, from scratch, in minutes on two CPU cores.

    python -m cacenet_jax.main --config=configs/synthetic.py --workdir=workdirs/synthetic
    python -m cacenet_jax.main --config=configs/synthetic.py:baseline --workdir=workdirs/baseline     # no pair stage

The paper's method with three changes that make re-scoring pay on a small network: the untied filter of equation 5, a graph
of correlations above a learned threshold, and a clue distance (table 1's second row) as nine tenths of a pair's distance.
The recipe was found on the data of seeds 0 and 1; this is the data of seed 2. docs/results.md says how it came about.
Measured, mAP over three seeds: baseline 42.97, individual 44.14, mixed 45.08 (docs/results.md).
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
    config.eval.mix = 0.5  # the best on the validation identities
    return apply(config, variant)
