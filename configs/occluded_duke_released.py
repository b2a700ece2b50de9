"""The authors' later release of CACE-Net on Occluded-Duke (they report nothing for it).

See configs/market1501_released.py for the recipe, its checkpoints and what it needs; the command differs in the name alone.

    python -m cacenet_jax.main --config=configs/occluded_duke_released.py --config.data.root=DIR \
        --config.pretrained=hub:timm/resnet50.tv_in1k --workdir=workdirs/occluded_duke_released

Measured with this package: nothing yet.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import released
from cacenet_jax.reproduce.rows import apply


def get_config(row: str = "full") -> ConfigDict:
    config = released()
    config.data.name = "occluded_dukemtmc"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    return apply(config, row)
