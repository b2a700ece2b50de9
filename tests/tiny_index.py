"""A small untrained network in a workdir, names of photographs for the tests of an index, and equality of two indices."""

from runpy import run_path

import jax
import numpy as np
from command import TINY

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.workdir import claim_workdir
from cacenet_jax.train_step import create_state

NAMES = [f"{'front' if i % 2 else 'gate/inner'}/{i:02}.png" for i in range(23)] + ['it\'s "odd"\n<b>.png', "ä ö/ü.png"]
COLUMNS = ["id", "path", "box", "frame", "bytes", "modified", "camera", "time", "track", "identity"]


def workdir(folder, seed):
    """A workdir with a network whose parameters are random."""
    config = run_path(str(TINY))["get_config"]()
    config.eval.top_k, config.eval.map_dtype, config.eval.mix = 6, "float32", 0.7
    settings = experiment.read(config)
    state = jax.device_get(
        create_state(settings.network.build(8), settings.optimizer(1), jax.random.key(seed), (32, 16))
    )
    rng = np.random.default_rng(seed)
    away = lambda x: np.asarray(x * rng.uniform(0.8, 1.2, x.shape) + 0.05 * rng.standard_normal(x.shape), x.dtype)
    statistics = jax.tree.map(lambda x: np.asarray(x * rng.uniform(0.8, 1.2, x.shape), x.dtype), state.batch_stats)
    state = state.replace(params=jax.tree.map(away, state.params), batch_stats=statistics)
    claim_workdir(folder, to_dict(config), {})
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, jax.device_put(state, replicated_sharding(global_mesh(1))))
    checkpoints.close()
    return config


def content(index):
    return {row["id"]: row for row in index.to_arrow().to_pylist()}


def assert_same(index, other):
    """Two indices hold the same rows; embeddings to rounding, because batches differ."""
    rows, others = content(index), content(other)
    assert rows.keys() == others.keys()
    for name, row in rows.items():
        for column in COLUMNS:
            assert row[column] == others[name][column]
        np.testing.assert_allclose(row["embedding"], others[name]["embedding"], atol=1e-6)
        assert len(row["terms"]) == len(others[name]["terms"]) > 0
