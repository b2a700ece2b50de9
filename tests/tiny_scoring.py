"""Scoring of a small random data set by the pixel network; as a program, one of several processes that score it.

python tests/tiny_scoring.py HOST:PORT PROCESSES PROCESS FOLDER     writes FOLDER/PROCESS.json
"""

import json
import os
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from tiny_retrieval import network

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data.builders import Records, Split
from cacenet_jax.data.subsets import all_records
from cacenet_jax.evaluate import score
from cacenet_jax.train_step import TrainState

SIZE = (6, 4)
NUM_QUERY, NUM_GALLERY = 21, 50


class _Images:
    """Data source of encoded images of similar identities."""

    def __init__(self, pids, seed):
        self._pids, self._seed = pids, seed

    def __len__(self):
        return len(self._pids)

    def __getitem__(self, i):
        person = np.random.default_rng(int(self._pids[i])).integers(60, 196, (*SIZE, 3))
        noise = np.random.default_rng([self._seed, i]).integers(-60, 60, (*SIZE, 3))
        return {"image": cv2.imencode(".png", (person + noise).astype(np.uint8))[1].tobytes(), "name": b"x"}


def split(count, seed):
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, 8, count), rng.integers(0, 3, count)
    return all_records(Split(Records(_Images(pids, seed)), pids, camids, [f"{i}" for i in range(count)]))


def tiny_config(folder=".", **fields):
    config = paper()
    config.data.height, config.data.width, config.data.dir = *SIZE, str(folder)
    config.eval.top_k, config.eval.batch_size, config.eval.pairs_per_call = 10, 16, 64
    config.eval.update(fields)
    return config


def state(net_fields=None, factor=1.0):
    fields = net_fields or {}
    if "stage" not in fields:
        fields = {"keys": "correlation", "clue_weight": 0.3, **fields}
    net, variables = network(jnp.float32, **fields)
    variables = jax.tree.map(lambda x: np.asarray(x * factor), variables)
    return net, TrainState(np.int32(0), variables["params"], variables["batch_stats"], ())


def run(config, net_fields=None, mixes=(0.2, 0.8), factor=1.0):
    return score_state(config, *state(net_fields, factor), mixes)


def score_state(config, net, values, mixes=()):
    return score(experiment.read(config), net, values, split(NUM_QUERY, 1), split(NUM_GALLERY, 2), mixes)


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), initialization_timeout=600)
    out = Path(sys.argv[4])
    results = [run(tiny_config(out)), run(tiny_config(out, memory_gib=1e-5), mixes=())]
    (out / f"{sys.argv[3]}.json").write_text(json.dumps({"devices": jax.device_count(), "results": results}))
    os._exit(0)  # the usual interpreter exit waits for the other processes
