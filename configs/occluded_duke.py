"""CACE-Net on Occluded-Duke with the paper's settings (section 4.2; table 5, 50.8 mAP / 58.8 rank-1).

See configs/market1501.py for the pretrained weights that the schedule needs; the commands are otherwise the same.

    python -m cacenet_jax.main --config=configs/occluded_duke.py --config.data.root=DIR --workdir=workdirs/occluded_duke

`:released` selects the authors' later recipe, as in configs/market1501.py (no results are reported for this data set).
A row of tables 1 to 3 is selected in the same way, for example `:normal`.

Not yet measured with this package.
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
