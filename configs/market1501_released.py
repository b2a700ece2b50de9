"""The authors' later release of CACE-Net on Market-1501 (their page: 90.00 mAP / 95.67 rank-1, individual features).

docs/paper_notes.md, "The released recipe", says how it differs from the paper. From ImageNet weights, as the authors:

    python -m cacenet_jax.main --config=configs/market1501_released.py --config.data.root=data \
        --config.pretrained=hub:timm/resnet50.tv_in1k --workdir=workdirs/market1501_released

or from a checkpoint of theirs, which --mode=evaluate, visualize and export then take:

    python -m cacenet_jax.main --mode=import --config=configs/market1501_released.py \
        --config.pretrained=FILE.pth --workdir=workdirs/market1501_released

Measured with this package: nothing yet, training needs a GPU or TPU; add --config.model.dtype=bfloat16 there.
Their code: https://github.com/TencentYoutuResearch/PersonReID-YouReID
"""

from ml_collections import ConfigDict

from cacenet_jax.config import released
from cacenet_jax.reproduce.rows import apply


def get_config(row: str = "full") -> ConfigDict:
    config = released()
    config.data.name = "market1501"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    return apply(config, row)
