"""Fingerprints of results: the data, the network and the settings that they are of.

Results count only for the same fingerprint; results of another one are neither used nor overwritten.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import logging

from cacenet_jax.data.builders import Prepared, open_split
from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Evaluation
from cacenet_jax.run.integrity import describe, flatten, record
from cacenet_jax.run.workdir import read_json
from cacenet_jax.train_step import TrainState

# Fields of config.eval that affect a score; the others affect memory and speed.
SCORED_BY = ("top_k", "camera_filter", "mix", "distance", "rerank", "flip", "map_dtype", "checkpoint")
_DIGITS = 16


def fingerprint(prepared: Prepared, state: TrainState, evaluation: Evaluation) -> dict[str, Any]:
    """Return the fingerprint of results.

    Args:
        prepared: data set whose query and gallery are scored.
        state: state of the network.
        evaluation: evaluation settings.

    Returns:
        "data", hash of the scored images and their labels; "network", hash of the parameters and statistics; and
        "settings", the values of the `SCORED_BY` fields.
    """
    return {
        "data": of_data(prepared),
        "network": of_network(state),
        "settings": {name: getattr(evaluation, name) for name in SCORED_BY},
    }


def of_data(prepared: Prepared) -> str:
    """Return the hash of the images and labels of query and gallery, independent of where and when they were prepared."""
    return _hash([open_split(prepared, split).digest for split in ("query", "gallery")])


def of_network(state: TrainState) -> str:
    """Return the hash of the parameters and statistics."""
    return of_weights({"params": state.params, "batch_stats": state.batch_stats})


def of_weights(variables: Mapping[str, Any]) -> str:
    """Return the hash of a network's variables, "params" and "batch_stats"."""
    arrays = flatten({name: variables[name] for name in ("params", "batch_stats")})
    return _hash({name: list(describe(jnp.asarray(x))) for name, x in arrays.items()})


def of_checkpoint(workdir: Path, step: int) -> str | None:
    """Return the hash that `of_network` has for a checkpoint, from its metadata, or None if these cannot be read."""
    try:
        arrays = record(workdir / "checkpoints" / str(step))
    except UserError:
        return None
    return _hash({name: list(x) for name, x in arrays.items() if name.startswith(("params/", "batch_stats/"))})


def results_path(folder: Path, name: str, data: str, is_own: bool = True) -> Path:
    """Return the path for results: folder/NAME.json, or a separate file if that one holds results for other data.

    Args:
        folder: workdir.
        name: stem of the file, such as "results".
        data: hash of the scored data (`of_data`).
        is_own: False if the data are known not to be the run's own. Used only if NAME.json has no fingerprint.
    """
    path = folder / f"{name}.json"
    before = recorded_marks(_readable(path))
    same_data = is_own if before is None else before["data"] == data
    return path if same_data else folder / f"{name}_{data[:8]}.json"


def keep_others(path: Path, marks: dict[str, Any]) -> None:
    """Rename the results in a file if they have another fingerprint or are damaged; new ones do not overwrite them."""
    results = _readable(path)
    before = recorded_marks(results)
    if results is None and path.exists():
        path.rename(path.with_name(f"damaged_{path.name}"))
    elif before is not None and before != marks:
        path.rename(path.with_name(f"{path.stem}_{_hash(before)[:8]}.json"))


def matching_results(folder: Path, data: str, network: str) -> dict[str, Any] | None:
    """Return the results in a workdir of this data and network, or None; results.json is preferred, damaged ones ignored."""
    for path in (folder / "results.json", *sorted(folder.glob("results_*.json"))):
        results = _readable(path)
        marks = recorded_marks(results)
        if marks is not None and (marks["data"], marks["network"]) == (data, network):
            return results
    return None


def recorded_marks(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the fingerprint in results, or None if there is none, or one of another form."""
    marks = (results or {}).get("fingerprint")
    if not isinstance(marks, dict) or not isinstance(marks.get("settings"), dict):
        return None
    return marks if all(isinstance(marks.get(name), str) for name in ("data", "network")) else None


def _readable(path: Path) -> dict[str, Any] | None:
    """Return the results in a file, or None with a warning if it is damaged."""
    try:
        return read_json(path)
    except UserError as error:
        logging.warning("%s; it is not used", error)
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
