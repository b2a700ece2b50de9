"""CACE-Net on MSMT17 with the paper's settings (section 4.2; table 4, 62.0 mAP / 83.54 rank-1).

Trains on `train` alone (1,041 identities), as the paper does; --config.data.options.train_val=True adds `val`, as some
others do. Reads the layouts of MSMT17_V1 and MSMT17_V2. See configs/market1501.py for what the schedule needs.

    python -m cacenet_jax.main --config=configs/msmt17.py --config.data.root=DIR --workdir=workdirs/msmt17

Measured with this package: nothing yet.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.rows import apply


def get_config(row: str = "full") -> ConfigDict:
    config = paper()
    config.data.name = "msmt17"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True, "train_val": False})
    return apply(config, row)
