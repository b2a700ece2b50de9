"""The authors' later release of CACE-Net on MSMT17 (their page: 61.9 mAP / 83.77 rank-1, individual features).

See configs/market1501_released.py for the recipe, its checkpoints and what it needs; the command differs in the name alone.

    python -m cacenet_jax.main --config=configs/msmt17_released.py --config.data.root=DIR \
        --config.pretrained=hub:timm/resnet50.tv_in1k --workdir=workdirs/msmt17_released

Measured with this package: nothing yet.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import released
from cacenet_jax.reproduce.rows import apply


def get_config(row: str = "full") -> ConfigDict:
    config = released()
    config.data.name = "msmt17"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True, "train_val": False})
    return apply(config, row)
