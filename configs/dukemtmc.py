"""CACE-Net on DukeMTMC-reID with the paper's settings (section 4.2; table 4, 81.29 mAP / 90.89 rank-1).

The data set was withdrawn by its authors: this reads a copy that you have. See configs/market1501.py for what the schedule
needs; the command differs in the name alone.

    python -m cacenet_jax.main --config=configs/dukemtmc.py --config.data.root=DIR --workdir=workdirs/dukemtmc

`:released` is the authors' later recipe, as in configs/market1501.py (their page: 81.13 mAP / 89.90 rank-1, individual
features); a row of tables 1 to 3 is an argument too, `:normal`.

Measured with this package: nothing yet.
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
