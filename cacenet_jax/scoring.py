"""Scores a trained network on query and gallery: the bridge between config, data, model and retrieval."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import build
from cacenet_jax.checkpoints import write_json
from cacenet_jax.data.builders import Prepared, open_split
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.splits import Subset, TrainVal, whole
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.retrieval.evaluate import Labelled, Settings, evaluate, extract, table
from cacenet_jax.retrieval.ranking import check_rankable
from cacenet_jax.train_step import TrainState

# Weights of the pair distance that are compared on validation data, to choose config.eval.mix.
MIXES = tuple(round(0.1 * i, 1) for i in range(1, 10))


def score(
    config: ConfigDict, net: CACENet, state: TrainState, query: Subset, gallery: Subset, mixes: Sequence[float] = ()
) -> dict[str, Any]:
    """Metrics of every ranking of the gallery by a state of the network, as `retrieval.evaluate.evaluate` gives them."""
    settings = config.eval
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.device_put(variables, jax.local_devices()[0])  # a replicated state would score once on each device
    describe = build.describe_fn(net, variables, settings.flip)

    def features(subset: Subset) -> Labelled:
        size = {"height": config.data.height, "width": config.data.width, "batch_size": settings.batch_size}
        room = {"folder": config.data.dir, "limit_bytes": round(settings.memory_gib * 2**30)}
        found = extract(describe, evaluation_batches(subset, **size), len(subset.indices), **room)
        return Labelled(found, np.asarray(subset.pids), np.asarray(subset.camids))

    how = Settings(
        top_k=settings.top_k,
        camera_filter=settings.camera_filter,
        mix=settings.mix,
        pairs_per_call=settings.pairs_per_call,
    )
    return evaluate(features(query), features(gallery), build.pair_distance_fn(net, variables), how, mixes)


def check_splits(config: ConfigDict, prepared: Prepared, cut: TrainVal | None = None) -> None:
    """Raises UserError, before any training, where the test split or the validation identities cannot be ranked."""
    pairs = {"test split": tuple(whole(open_split(prepared, split)) for split in ("query", "gallery"))}
    if cut is not None and len(cut.query.indices):
        pairs["validation split, cut from train by config.data.val_share"] = (cut.query, cut.gallery)
    for where, (query, gallery) in pairs.items():
        labels = (query.pids, gallery.pids, query.camids, gallery.camids)
        check_rankable(*labels, camera_filter=config.eval.camera_filter, where=f"{config.data.name}, {where}")


def score_test(
    config: ConfigDict, net: CACENet, state: TrainState, prepared: Prepared, step: int, workdir: Path
) -> dict[str, Any]:
    """Scores the test split, prints the table and writes results.json; returns what it holds."""
    start = time.monotonic()
    result = score(config, net, state, whole(open_split(prepared, "query")), whole(open_split(prepared, "gallery")))
    result |= {
        "data": config.data.name,
        "options": config.data.options.to_dict(),
        "step": step,
        "mix": config.eval.mix,
        "seconds": time.monotonic() - start,
    }
    print(f"\n{config.data.name}, test split, step {step}, {result['seconds']:.0f} s\n{table(result)}", flush=True)
    write_json(workdir / "results.json", result)
    return result
