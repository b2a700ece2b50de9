"""CACE-Net on MSMT17 with the paper's settings (section 4.2; table 4, 62.0 mAP / 83.54 rank-1).

As in the paper, only `train` is used for training (1,041 identities); --config.data.options.train_val=True adds `val`,
as some other papers do. Both the MSMT17_V1 and the MSMT17_V2 layout are supported. See configs/market1501.py for the
pretrained weights that the schedule needs.

    python -m cacenet_jax.main --config=configs/msmt17.py --config.data.root=DIR --workdir=workdirs/msmt17

`:released` selects the authors' later recipe, as in configs/market1501.py (their page reports 61.9 mAP / 83.77 rank-1
with individual features). A row of tables 1 to 3 is selected in the same way, for example `:normal`.

Not yet measured with this package.
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
