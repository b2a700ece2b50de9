"""CACE-Net on MSMT17 with the paper's settings (section 4.2; table 4, 62.0 mAP / 83.54 rank-1).

Trains on `train` alone (1,041 identities), as the paper does; --config.data.options.train_val=True adds `val`, as some
others do. Reads the layouts of MSMT17_V1 and MSMT17_V2. See configs/market1501.py for what the schedule needs.

    python -m cacenet_jax.main --config=configs/msmt17.py --config.data.root=DIR --workdir=workdirs/msmt17

`:released` is the authors' later recipe, as in configs/market1501.py (their page: 61.9 mAP / 83.77 rank-1, individual
features); a row of tables 1 to 3 is an argument too, `:normal`.

Measured with this package: nothing yet.
"""

from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.reproduce.variants import apply


def get_config(variant: str = "full") -> ConfigDict:
    config = paper()
    config.data.name = "msmt17"
    config.data.root = "data"
    config.data.options = ConfigDict({"check_counts": True, "train_val": False})
    return apply(config, variant)
