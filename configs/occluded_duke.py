"""CACE-Net on Occluded-Duke with the paper's settings (section 4.2; table 5, 50.8 mAP / 58.8 rank-1).

See configs/market1501.py for what the schedule needs; the command differs in the name alone.

    python -m cacenet_jax.main --config=configs/occluded_duke.py --config.data.root=DIR --workdir=workdirs/occluded_duke

`:released` is the authors' later recipe, as in configs/market1501.py (they report nothing for this data set); a row of
tables 1 to 3 is an argument too, `:normal`.

Measured with this package: nothing yet.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.data.name = "occluded_dukemtmc"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True})
    return apply(config, variant)
