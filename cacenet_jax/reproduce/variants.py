"""Variants of a config: recipes, and the rows of the paper's tables 1 to 3. A variant is the argument of a config file.

python -m cacenet_jax.main --config=configs/market1501.py:released --workdir=workdirs/released
python -m cacenet_jax.main --config=configs/synthetic_ablation.py:normal --workdir=workdirs/normal
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.errors import UserError
from cacenet_jax.run.choices import override

FULL = "full"  # changes nothing

# Name -> dotted field -> value. Fields that a variant does not name are the config's, but those of another pair stage than
# the config's own start from that stage's defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "baseline": {"model.pair_stage": NO_PAIR_STAGE},
        # What the authors published later; docs/paper_notes.md says how it differs from the paper.
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
    """Return the rows of table 2 that alignment strategies bring beside the paper's: name to label. Imports jax."""
    from cacenet_jax.models.pair_stages.conditional.alignment import table_rows  # here: a typo need not wait for jax

    return {name: label for name, (label, _) in table_rows().items() if name not in ROWS}


def rows() -> dict[str, Mapping[str, Any]]:
    """Return every row of tables 1 to 3, the registered ones last: name to changes."""
    return dict(ROWS) | {name: {"model.pair.alignment": name} for name in registered_rows()}


def changes(name: str) -> Mapping[str, Any]:
    """Return what a recipe or a row changes, dotted field to value.

    Raises:
        UserError: there is no such variant.
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


def apply(config: ConfigDict, name: str) -> ConfigDict:
    """Return a copy of a config with what a variant changes.

    Args:
        config: of the full model, as `cacenet_jax.config.paper` and a file in configs/ make it.
        name: a key of `RECIPES` or `ROWS`; `full` changes nothing.

    Raises:
        UserError: there is no such variant.
    """
    return override(config, changes(name))
