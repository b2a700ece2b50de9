"""--mode=import: conversion of the authors' released PyTorch checkpoint to a workdir that can be evaluated.

python -m cacenet_jax.main --mode=import --config=configs/market1501.py:released --config.pretrained=FILE --workdir=DIR
python -m cacenet_jax.main --mode=evaluate --workdir=DIR --config.data.root=DIR

The file must contain every layer of the network; the prefix `module.` is allowed. The number of identities is taken
from its classifier. Repository of the authors: https://github.com/TencentYoutuResearch/PersonReID-YouReID
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import resnet
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.pretrained.matching import match_weights
from cacenet_jax.pretrained.reading import read
from cacenet_jax.pretrained.sources import locate
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.validation import validate
from cacenet_jax.run.workdir import check_workdir, claim_workdir
from cacenet_jax.train_step import TrainState

_CLASSIFIER = "fc_layer.2.weight"
_LAYERS = {
    ("gemp", "p"): "gemp.p",
    ("pair_graph", "y", "kernel"): "pair_graph.y.weight",
    ("pair_graph", "g", "kernel"): "pair_graph.g.weight",
    ("pair_graph", "o", "kernel"): "pair_graph.o.weight",
    ("individual_head", "conv", "kernel"): "embedding_layer.0.weight",
    ("individual_head", "bn", "scale"): "embedding_layer.1.weight",
    ("individual_head", "bn", "bias"): "embedding_layer.1.bias",
    ("individual_head", "bn", "mean"): "embedding_layer.1.running_mean",
    ("individual_head", "bn", "var"): "embedding_layer.1.running_var",
    ("individual_head", "classifier", "kernel"): _CLASSIFIER,
    ("individual_head", "pair_classifier", "kernel"): "pair_fc_layer.2.weight",
}
_STEP = 1  # step of the imported checkpoint; 0 would mean no checkpoint


def released_name(path: Sequence[str]) -> str:
    """Return the name of a parameter or running statistic in the authors' state dict.

    Args:
        path: keys from the root of `params` or `batch_stats`, such as ("pair_graph", "y", "kernel").

    Raises:
        UserError: the authors' network has no such layer.
    """
    if path[0] == "backbone":
        return "resnet." + resnet.torch_name(path[1:])
    if tuple(path) not in _LAYERS:
        raise UserError(
            f"--mode=import: found a network with {'/'.join(path)}, which the authors' release lacks, expected "
            "the released recipe; take configs/market1501.py:released or a sibling"
        )
    return _LAYERS[tuple(path)]


def released_variables(net: CACENet, arrays: Mapping[str, np.ndarray], there: str) -> dict[str, Any]:
    """Convert the authors' state dict to variables of a network of the released recipe.

    Args:
        net: network with as many identities as the file.
        arrays: arrays by name, in PyTorch's layout.
        there: name of the file, for error messages.

    Returns:
        `params` and `batch_stats`.

    Raises:
        UserError: arrays are missing, unexpected, of another shape, or not finite; all of them are listed.
    """
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    like = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    return match_weights(arrays, like, released_name, there, "the network of this config").variables


def identities(arrays: Mapping[str, np.ndarray], there: str) -> int:
    """Return the number of training identities in a state dict.

    Raises:
        UserError: the state dict lacks the release's classifier.
    """
    kernels = [x for name, x in arrays.items() if name.removeprefix("module.") == _CLASSIFIER and x.ndim == 2]
    if not kernels:
        raise UserError(
            f"config.pretrained: found {there} without {_CLASSIFIER}, expected a checkpoint of the authors' CACE-Net; "
            "weights of a backbone alone are taken by --mode=train"
        )
    return len(kernels[0])


def import_checkpoint(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Write the network in config.pretrained to a new workdir as a checkpoint.

    Args:
        config: config of the released recipe, with config.pretrained set.
        workdir: new workdir, for use with --mode=evaluate, visualize and export. Training cannot resume in it, because
            the identities behind its classes are unknown, but a new run may start from it (config.init_from).

    Returns:
        The state that was written.

    Raises:
        UserError: the file is missing or does not match the network, the workdir is in use, or the config is of another
            recipe.
    """
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    if not config.pretrained:
        raise UserError(
            "config.pretrained: not given, expected the authors' checkpoint with --mode=import; name the file"
        )
    if (name := config.model.backbone) not in resnet.STAGES:
        raise UserError(f"config.model.backbone: found {name!r} with --mode=import, expected a ResNet; choose theirs")
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
    net = settings.network.build(identities(arrays, str(path)))
    variables = jax.tree.map(jnp.asarray, released_variables(net, arrays, str(path)))
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
