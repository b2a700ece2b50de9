"""A small untrained network in a workdir, and the names of photographs, for the tests of an index."""

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
