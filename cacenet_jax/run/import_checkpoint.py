"""--mode=import: conversion of a published PyTorch checkpoint of a complete network to a workdir.

python -m cacenet_jax.main --mode=import --config.pretrained=FILE --workdir=DIR
python -m cacenet_jax.main --mode=evaluate --workdir=DIR --config.data.root=DIR

`pretrained.networks` lists the known kinds of checkpoints. The file must contain every layer of the network. Without
--config, the file decides the network; the number of identities is always taken from its classifier.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.experiment import Network
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.pretrained.matching import match_weights
from cacenet_jax.pretrained.networks import Layout, recognise
from cacenet_jax.pretrained.reading import read
from cacenet_jax.pretrained.sources import locate
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.validation import validate
from cacenet_jax.run.workdir import check_workdir, claim_workdir
from cacenet_jax.train_step import TrainState

_STEP = 1  # step of the imported checkpoint; 0 would mean no checkpoint


def network_variables(net: CACENet, layout: Layout, arrays: Mapping[str, np.ndarray], there: str) -> dict[str, Any]:
    """Convert a state dict to the variables of a network.

    Args:
        net: network with as many identities as the file.
        layout: layout of the state dict.
        arrays: arrays by name, in PyTorch's layout.
        there: name of the file, for error messages.

    Returns:
        `params` and `batch_stats`.

    Raises:
        UserError: arrays are missing, unexpected, of another shape, or not finite; all of them are listed.
    """
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    like = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    of_backbone = net.backbone.torch_name
    return match_weights(
        arrays, like, lambda path: layout.torch_name(of_backbone, path), there, "the network of this config"
    ).variables


def load_published(network: Network, arrays: Mapping[str, np.ndarray], there: str) -> tuple[CACENet, dict[str, Any]]:
    """Build the network of a published checkpoint and return it with its variables.

    Args:
        network: settings of the network.
        arrays: arrays by name, from `pretrained.reading.read`.
        there: name of the file, for error messages.

    Raises:
        UserError: the arrays are those of no known kind, or do not match the network.
    """
    layout, plain = recognise(arrays, there)
    net = network.build(layout.identities(plain))
    return net, jax.tree.map(jnp.asarray, network_variables(net, layout, plain, there))


def import_checkpoint(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Write the network in config.pretrained to a new workdir as a checkpoint.

    Args:
        config: config of the network in the file, with config.pretrained set.
        workdir: new workdir, for use with --mode=evaluate, visualize and export. Training cannot resume in it, because
            the identities behind its classes are unknown, but a new run may start from it (config.init_from).

    Returns:
        The state that was written.

    Raises:
        UserError: the file is missing or does not match the network, or the workdir is in use.
    """
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    if not config.pretrained:
        raise UserError(
            "config.pretrained: not given, expected the checkpoint of a complete network with --mode=import; name the file"
        )
    recorded = to_dict(config)
    check_workdir(workdir, recorded)
    if (workdir / "checkpoints").is_dir():  # possibly left by an interrupted import
        checkpoints = Checkpoints(workdir, create=False)
        steps = checkpoints.steps()
        checkpoints.close()
        if steps:
            raise UserError(f"{workdir}: found a network there already, expected none; choose a new --workdir")
    path = locate(config.pretrained)
    arrays = read(path)
    settings = experiment.read(config)
    net, variables = load_published(settings.network, arrays, str(path))
    params = variables["params"]
    opt_state = settings.optimizer(1).init(params)
    state = TrainState(jnp.asarray(_STEP, jnp.int32), params, variables["batch_stats"], opt_state)
    state = jax.device_put(state, replicated_sharding(global_mesh(config.devices)))
    claim_workdir(workdir, recorded, {"imported": path.name, "identities": net.num_identities})
    checkpoints = Checkpoints(workdir)
    checkpoints.save(_STEP, state)
    checkpoints.close()
    sizes = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{path}: {sizes:,} parameters of {net.num_identities} identities are in {workdir}; --mode=evaluate scores it"
    )
    return state
