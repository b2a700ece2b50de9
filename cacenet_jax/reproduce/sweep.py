"""Section 3.5: evaluation of a trained network for increasing numbers of re-scored images. Nothing is trained."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from cacenet_jax.data import json_files
from cacenet_jax.data.builders import open_split
from cacenet_jax.data.subsets import all_records
from cacenet_jax.distributed.processes import is_writer
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import describe
from cacenet_jax.experiment import Evaluation
from cacenet_jax.reproduce.tables import SWEEP_TOP_K, SWEEP_WHOLE
from cacenet_jax.retrieval.rankings import Rescore, evaluate
from cacenet_jax.run.workdir import write_json
from cacenet_jax.train import Trained

FILE = "top_k.json"  # in the workdir of the run


class _Timed:
    """Wrapper that measures the duration of a re-scoring function."""

    def __init__(self, rescore: Rescore):
        self._rescore = rescore
        self.seconds = 0.0

    def __call__(self, candidates_QK: np.ndarray) -> np.ndarray:
        """Call the wrapped function and record its duration."""
        start = time.monotonic()
        try:
            return self._rescore(candidates_QK)
        finally:
            self.seconds = time.monotonic() - start


def top_ks(num_gallery: int) -> list[int]:
    """Return the numbers of re-scored images to compare; 0 means that only the individual ranking is computed."""
    whole_gallery = [num_gallery] if num_gallery <= SWEEP_WHOLE else []
    return sorted({*(k for k in SWEEP_TOP_K if k <= num_gallery), *whole_gallery})


def done(folder: Path, evaluation: Evaluation) -> list[dict[str, Any]] | None:
    """Return the sweep of a run, or None if it is missing, damaged, or belongs to other settings or other results."""
    results = folder / "results.json"
    try:
        written = json_files.read(folder / FILE, "")
    except UserError:  # it is made again
        return None
    if written is None or not results.exists() or not isinstance(written.get("rows"), list):
        return None
    return written["rows"] if written.get("of") == _identity(results, evaluation) else None


def _identity(results: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the data, network and settings that a sweep depends on, except for top_k."""
    marks = (json_files.read(results, f"remove {results.parent} to run it again") or {}).get("fingerprint")
    marks = marks if isinstance(marks, dict) else {}
    settings = {name: value for name, value in dataclasses.asdict(evaluation).items() if name != "top_k"}
    return {"data": marks.get("data"), "network": marks.get("network"), "eval": settings}


def sweep(trained: Trained, folder: Path) -> list[dict[str, Any]]:
    """Score a trained network for each K from `top_ks` and write the results to its workdir.

    Args:
        trained: network and data, from `cacenet_jax.train.load`.
        folder: workdir of the run.

    Returns:
        One row per K, with "top_k", the available rankings, "pairs" (number of pairs per query) and times in seconds
        without compilation: "describe" (features of all images, measured once), "rescore" (scoring of the pairs),
        "rank" (everything else) and "seconds" (total).
    """
    query, gallery = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    for _ in range(2):  # the first pass includes compilation
        start = time.monotonic()
        images = describe(trained.settings, trained.net, trained.state, query, gallery)
        described = time.monotonic() - start
    rows = []
    values = top_ks(len(gallery.indices))
    for top_k in track(values, "sweeping the top K", len(values), "values"):
        timed = _Timed(images.rescore) if top_k and images.rescore else None
        settings = dataclasses.replace(images.settings, top_k=max(top_k, 1))
        for _ in range(2):
            start = time.monotonic()
            result = evaluate(images.query, images.gallery, timed, settings)
            total = time.monotonic() - start
        rescored = timed.seconds if timed else 0.0
        rankings = {name: result[name] for name in ("individual", "conditional", "mixed") if name in result}
        seconds = {"describe": described, "rescore": rescored, "rank": total - rescored, "seconds": described + total}
        row: dict[str, Any] = {"top_k": top_k, "pairs": top_k}
        rows.append(row | rankings | seconds)
    if is_writer():
        write_json(folder / FILE, {"of": _identity(folder / "results.json", trained.settings.evaluation), "rows": rows})
    return rows
