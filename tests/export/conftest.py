"""A tiny network whose parameters are away from their start, in place of the one that a workdir would hold."""

import importlib.util

import jax
import numpy as np
import optax
import pytest
from command import TINY

from cacenet_jax import experiment
from cacenet_jax.export import run
from cacenet_jax.train_step import create_state

STEP = 12


def tiny(**fields):
    """A config, its network and a state of it; fields are of config.model, or of another section before two underscores."""
    found = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config()
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        config[section or "model"].update({field: value})
    net = experiment.read(config).network.build(8)
    state = jax.device_get(
        create_state(net, optax.identity(), jax.random.key(0), (config.data.height, config.data.width))
    )
    rng = np.random.default_rng(1)
    away = lambda x: np.asarray(x + 0.1 * np.abs(x).mean() * rng.standard_normal(x.shape), x.dtype)
    wide = lambda x: np.asarray(x * rng.uniform(0.8, 1.2, x.shape) + 0.05, x.dtype)
    return (
        config,
        net,
        state.replace(params=jax.tree.map(away, state.params), batch_stats=jax.tree.map(wide, state.batch_stats)),
    )


@pytest.fixture(scope="session")
def export_tiny():
    """Exports a tiny network into a workdir; gives the folder, the network and its functions as evaluation has them."""

    def export(workdir, **fields):
        config, net, state = tiny(**fields)
        workdir.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "load_network", lambda config, workdir: (net, STEP, state))
            folder = run.export(config, workdir)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return folder, net, run.functions(net, variables, (config.data.height, config.data.width), config.eval.flip)

    return export


@pytest.fixture(scope="session")
def exported(tmp_path_factory, export_tiny):
    """One export for the tests that read it."""
    return export_tiny(tmp_path_factory.mktemp("export") / "run", pair={"clue_weight": 0.5})
