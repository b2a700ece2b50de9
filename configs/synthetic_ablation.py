"""The paper's ablations on synthetic pedestrians: each row of tables 1 to 3 takes about 100 s on one CPU core.

    python -m cacenet_jax.main --mode=reproduce --table=all --config=configs/synthetic_ablation.py --workdir=workdirs/tables
    python -m cacenet_jax.main --config=configs/synthetic_ablation.py:normal --workdir=workdirs/normal    # one row

cacenet_jax/reproduce/variants.py lists the rows. The full model is the paper's, with a small network and more test
images than in configs/synthetic.py, to reduce the noise in the differences between rows. No choice is made on
validation data, so training uses all training identities and the last epoch is reported.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.epochs = 14
    config.log_every = 20
    config.data.name = "synthetic_pedestrians"
    config.data.options = ConfigDict({"num_train_ids": 240, "num_test_ids": 160, "images_per_id": 12, "seed": 3})
    config.data.height = 128
    config.data.width = 64
    config.data.num_ids = 8
    config.augment.pad = 5
    config.model.backbone = "resnet_small"
    config.model.backbone_fields = ConfigDict({"width": 16})
    config.model.embed_dim = 128
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.reference_batch = 32
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 2.0
    config.eval.top_k = 50
    config.eval.mix = 0.5
    return apply(config, variant)
