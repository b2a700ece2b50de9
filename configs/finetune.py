"""Fine-tuning: a trained network goes on, on other people or with another pair stage.

    python -m cacenet_jax.main --mode=import --config.pretrained=osnet_x0_25_market1501.pth --workdir=workdirs/osnet
    python -m cacenet_jax.main --config=configs/finetune.py --config.init_from=workdirs/osnet --config.data.root=data \
        --workdir=workdirs/osnet_tuned
    python -m cacenet_jax.main --config=configs/finetune.py --config.init_from=workdirs/synthetic \
        --config.data.name=reid_folder --config.data.root=groups.csv --workdir=workdirs/mine

Data, network and pair stage are read from config.json in the workdir of --config.init_from, unless set on the command
line; `:pairs` adds the pair stage of configs/synthetic.py to a network that has none. Measured on Market-1501 (mAP /
rank-1, one NVIDIA H200, docs/results.md), from the published network, 77.64 / 91.51:

    finetune.py                                 individual 80.44 / 92.07, re-ranked 91.03 / 93.65
    finetune.py:pairs --config.epochs=16        individual 79.85 / 91.92, mixed 81.54 / 92.61
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.run.completion import leave_to_first_stage


def get_config(variant: str = "plain") -> ConfigDict:
    config = leave_to_first_stage(paper())
    config.epochs = 24
    config.data.num_ids = 16
    config.loss.margin = 0.3
    config.loss.label_smoothing = 0.1
    config.optim.name = "adamw"
    config.optim.learning_rate = 7e-4
    config.optim.reference_batch = 64
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 1.0
    if variant == "pairs":
        config.model.pair_stage = "conditional"
        config.model.pair = ConfigDict({"filters": "untied", "keys": "correlation", "clue_weight": 0.9})
    elif variant != "plain":
        raise UserError(f"configs/finetune.py: found the variant {variant!r}, expected plain or pairs; correct it")
    return config
