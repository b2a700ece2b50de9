"""CACE-Net on DukeMTMC-reID with the paper's settings (section 4.2; table 4, 81.29 mAP / 90.89 rank-1).

The authors have withdrawn the data set, so you need an existing copy. See configs/market1501.py for the pretrained
weights that the schedule needs; the commands are otherwise the same.

    python -m cacenet_jax.main --config=configs/dukemtmc.py --config.data.root=DIR --workdir=workdirs/dukemtmc

`:released` selects the authors' later recipe, as in configs/market1501.py (their page reports 81.13 mAP / 89.90 rank-1
with individual features). A row of tables 1 to 3 is selected in the same way, for example `:normal`.

Not yet measured with this package.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.data.name = "dukemtmc_reid"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    return apply(config, variant)
