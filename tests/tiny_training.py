"""A training problem of eight small images that compiles in seconds, shared by the tests of the step and of devices."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data.batch import Batch
from cacenet_jax.train_step import TrainState, create_state, make_train_step

LABELS = np.repeat(np.arange(4), 2).astype(np.int32)
SHAPE = (32, 16)


class OneBlock(nn.Module):
    """The smallest backbone with a batch norm: 8 x 8 patches to channels."""

    channels: int = 6
    dtype: type = np.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.channels, (8, 8), strides=(8, 8), padding="VALID", use_bias=False, dtype=self.dtype)(x)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name)
        return nn.relu(norm(x))


def tiny_config(dtype="float32", **model):
    config = paper()
    config.data.num_ids, config.data.images_per_id = 4, 2
    config.model.backbone, config.model.embed_dim, config.model.dtype = "resnet_tiny", 8, dtype
    config.model.update(model)
    return config


def network(config, axis_name=None, one_block=False):
    net = experiment.read(config).network.build(4, axis_name)
    if not one_block:
        return net
    backbone = OneBlock(dtype=net.dtype, axis_name=axis_name)
    stage = net.pair_stage and net.pair_stage.clone(channels=backbone.channels)
    return net.clone(backbone=backbone, pair_stage=stage)


def batch_of(dtype="float32", duplicates=False):
    images = np.random.default_rng(0).standard_normal((8, *SHAPE, 3)).astype(dtype)
    return Batch(images[[0, 0, 2, 2, 0, 5, 6, 6]] if duplicates else images, LABELS)


@functools.cache  # a program of its own for each network
def _initial(net, seed):
    return jax.device_get(create_state(net, optax.identity(), jax.random.key(seed), SHAPE))


def state_of(net, optimizer, dtype="float32", seed=0) -> TrainState:
    """A state on the host, all floats of one type, away from the symmetric start of norms and attention weights."""
    state = _initial(net, seed)
    rng = np.random.default_rng(seed)

    def cast(x):
        return np.asarray(x * rng.uniform(0.8, 1.2, x.shape), dtype) if x.ndim else np.asarray(x)

    return TrainState(
        np.asarray(state.step),
        jax.tree.map(cast, state.params),
        jax.tree.map(cast, state.batch_stats),
        optimizer.init(jax.tree.map(cast, state.params)),
    )


def step_of(config, optimizer=None, axis_name=None, one_block=False, augmentation=None):
    net = network(config, axis_name, one_block)
    weights = experiment.read(config).loss
    return make_train_step(net, optimizer or optax.sgd(1.0), weights, augmentation, jax.random.key(1), axis_name)
