"""The rows of the paper's tables 1 to 3: what each changes in a config. A row is the argument of a config file.

python -m cacenet_jax.main --config=configs/synthetic_ablation.py:normal --workdir=workdirs/normal
"""

import copy
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from cacenet_jax.errors import UserError

# Row -> dotted field -> value. Fields that a row does not name are the config's, so that `discrepancy` and `attention` are
# `full` where the config is the paper's.
ROWS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "full": {},
        "individual": {"model.pairs": False},  # tables 1 and 2: neither clues nor graph
        "clues": {"model.pair_score": "keypoints", "model.clue_weight": 0.0},
        "individual_gcn": {"model.alignment": "individual"},
        "normal": {"model.kind": "normal"},
        "discrepancy": {"model.kind": "discrepancy"},
        "part": {"model.alignment": "part"},
        "top1": {"model.alignment": "similarity", "model.neighbours": 1},
        "topk": {"model.alignment": "similarity", "model.neighbours": 5},
        "full_connect": {"model.alignment": "full"},
        "semantic": {"model.alignment": "semantic"},
        "attention": {"model.alignment": "attention"},
        "alpha_1.0": {"loss.alpha": 1.0},  # plain cross entropy
        "alpha_0.95": {"loss.alpha": 0.95},
        "alpha_0.9": {"loss.alpha": 0.9},
        "alpha_0.8": {"loss.alpha": 0.8},
        "alpha_0.7": {"loss.alpha": 0.7},
        "alpha_0.6": {"loss.alpha": 0.6},
    }
)


def apply(config: ConfigDict, row: str) -> ConfigDict:
    """A copy of a config with what a row changes.

    Args:
        config: of the full model, as `cacenet_jax.config.paper` and a file in configs/ make it.
        row: a key of `ROWS`.

    Returns:
        The config of the row; `full` changes nothing.

    Raises:
        UserError: there is no such row.
    """
    if row not in ROWS:
        raise UserError(
            f"row {row!r}: found no such row, expected one of {', '.join(ROWS)}; correct what follows the colon of --config"
        )
    changed = copy.deepcopy(config)  # keeps the types of fields that are empty
    changed.update_from_flattened_dict(ROWS[row])
    return changed
