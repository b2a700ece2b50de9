"""Variants of a config: recipes and the rows of tables 1 to 3, selected by the argument of a config file.

python -m cacenet_jax.main --config=configs/market1501.py:released --workdir=workdirs/released
python -m cacenet_jax.main --config=configs/synthetic_ablation.py:normal --workdir=workdirs/normal
"""

import copy
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.errors import UserError
from cacenet_jax.run.choices import lookup, override

FULL = "full"  # changes nothing
PAPER_STAGE = "conditional"

# Name -> dotted field -> value. All other fields keep the config's values, except that a variant with a different pair
# stage starts from that stage's defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "baseline": {"model.pair_stage": NO_PAIR_STAGE},
        # The code that the authors released later; docs/paper_notes.md lists its differences from the paper.
        "released": {
            "model.pair_stage": "released",
            "model.backbone_fields.non_local": True,
            "model.pooling": "gem",
            "model.relu": True,
            "model.dropout": 0.5,
            "loss.label_smoothing": 0.1,
            "loss.pair_identity": 2.0,  # both orders of a pair, each with weight 1
        },
    }
)
ROWS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        FULL: {},
        "individual": {"model.pair_stage": NO_PAIR_STAGE},  # tables 1 and 2: neither clues nor graph
        "clues": {"model.pair_stage": "keypoints"},
        "individual_gcn": {"model.pair.alignment": "individual"},
        "normal": {"model.pair.kind": "normal"},
        "discrepancy": {"model.pair.kind": "discrepancy"},
        "part": {"model.pair.alignment": "part"},
        "top1": {"model.pair.alignment": "similarity", "model.pair.neighbours": 1},
        "topk": {"model.pair.alignment": "similarity", "model.pair.neighbours": 5},
        "full_connect": {"model.pair.alignment": "full"},
        "semantic": {"model.pair.alignment": "semantic"},
        "attention": {"model.pair.alignment": "attention"},
        "alpha_1.0": {"loss.alpha": 1.0},  # plain cross entropy
        "alpha_0.95": {"loss.alpha": 0.95},
        "alpha_0.9": {"loss.alpha": 0.9},
        "alpha_0.8": {"loss.alpha": 0.8},
        "alpha_0.7": {"loss.alpha": 0.7},
        "alpha_0.6": {"loss.alpha": 0.6},
    }
)


def registered_rows() -> dict[str, str]:
    """Return name -> label of the rows that registered alignment strategies add to table 2. Imports jax."""
    from cacenet_jax.models.pair_stages.conditional.alignment import table_rows  # imported late: loads jax

    return {name: label for name, (label, _) in table_rows().items() if name not in ROWS}


def rows() -> dict[str, Mapping[str, Any]]:
    """Return the changes of all rows of tables 1 to 3 by name, with registered rows last."""
    return dict(ROWS) | {name: {"model.pair.alignment": name} for name in registered_rows()}


def changes(name: str) -> Mapping[str, Any]:
    """Return the changes that a recipe or row makes to a config, as values by dotted field.

    Raises:
        UserError: the variant does not exist.
    """
    known = {**RECIPES, **ROWS}
    if name not in known:
        known |= rows()
    if name not in known:
        raise UserError(
            f"variant {name!r}: no such recipe or row, expected one of {', '.join(known)}; correct what follows the colon "
            "of --config"
        )
    return known[name]


def with_paper_stage(config: ConfigDict, asked: Collection[str] = ()) -> ConfigDict:
    """Return a copy of a config with the paper's pair stage, for the rows of the paper's tables.

    Args:
        config: config of the full model, whose pair stage may be a different one or have other fields.
        asked: dotted fields set on the command line, which keep their values, including model.pair_stage itself.
    """
    if "model.pair_stage" in asked:
        return copy.deepcopy(config)
    kept = {field: lookup(config, field) for field in asked if field.startswith("model.pair.")}
    config = override(config, {"model.pair_stage": NO_PAIR_STAGE})  # drops the fields of the stage
    return override(config, {"model.pair_stage": PAPER_STAGE, **kept})


def apply(config: ConfigDict, name: str) -> ConfigDict:
    """Return a copy of a config with the changes of a variant applied.

    Args:
        config: config of the full model, from `cacenet_jax.config.paper` or a file in configs/.
        name: key of `RECIPES` or `rows()`; `full` changes nothing.

    Raises:
        UserError: the variant does not exist.
    """
    return override(config, changes(name))
