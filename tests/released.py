"""The golden network of the released recipe, shared by its tests: tests/golden/released.npz, which PyTorch 2.13.0 wrote."""

import functools
import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.models.backbones import resnet
from cacenet_jax.models.backbones.resnet import ResNet
from cacenet_jax.pretrained.networks import RELEASED
from cacenet_jax.reproduce.variants import apply
from cacenet_jax.run.import_checkpoint import network_variables

_FOLDER = Path(__file__).parent / "golden"


@functools.cache
def golden():
    return dict(np.load(_FOLDER / "released.npz"))


@functools.cache
def maker():
    """The script that made the golden file (it imports PyTorch only to write)."""
    spec = importlib.util.spec_from_file_location("make_released", _FOLDER / "make_released.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state_dict():
    """The golden weights under the authors' names, float64, without the counters of batch norms."""
    shapes = json.loads(str(golden()["shapes"]))
    return {name: maker().weight(name, tuple(shape)) for name, shape in shapes.items() if shape}


def golden_config(**model):
    config = apply(paper(), "released")
    config.data.height, config.data.width = maker().SHAPE[1:]
    config.model.embed_dim, config.model.dropout = maker().EMBED_DIM, 0.0
    config.model.update(model)
    return config


def golden_network(dtype="float32", axis_name=None, **model):
    """The network of the golden file: the recipe's, with narrow stages."""
    net = experiment.read(golden_config(backbone="resnet50", **model)).network.build(maker().IDENTITIES, axis_name)
    backbone = ResNet(
        stages=maker().STAGES, block="bottleneck", width=maker().WIDTH, non_local=True, dtype=dtype, axis_name=axis_name
    )
    stage = net.pair_stage.clone(channels=backbone.channels)
    return net.clone(backbone=backbone, pair_stage=stage).astype(jnp.dtype(dtype))


def released_name(path):
    """Name of a layer in the authors' state dict."""
    return RELEASED.torch_name(resnet.torch_name, path)


def golden_variables(net):
    return network_variables(net, RELEASED, state_dict(), "released.npz")
