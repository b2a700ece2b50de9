"""A network whose maps are the image's own pixels, shared by the tests of the pair stages and of retrieval."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cacenet_jax.models import pair_stages
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.conditional.clues import clue_distance
from cacenet_jax.models.pair_stages.conditional.pair import neighbours_both
from cacenet_jax.models.pixels import MEAN, STD
from cacenet_jax.models.scoring import constants_of, describe_maps

D, F, I = 4, 3, 5


class Pixels(nn.Module):
    """Backbone that returns the pixels of the image as a map of D channels, some of them negative."""

    channels: int = D
    pixel_mean, pixel_std = MEAN, STD

    def __call__(self, x, *, train):
        return jnp.concatenate([x, (x[..., :1] * x[..., 1:2])], axis=-1)


def module(
    dtype=jnp.float64, stage="conditional", memory_mib=1024.0, pooling="mean", frozen=False, relu=False, **fields
):
    """A network; further fields are those of the pair stage, None stands for no stage."""
    common = {"num_identities": I, "embed_dim": F, "dtype": dtype, "relu": relu}
    if stage is not None:
        stage = pair_stages.build(stage, channels=D, memory_mib=memory_mib, **common, **fields)
    return CACENet(backbone=Pixels(), pair_stage=stage, pooling=pooling, frozen=frozen, **common)


def network(dtype=jnp.float64, **fields):
    """A network and its variables, random and of that type, with a channel of w' of each sign and one that is 0."""
    net = module(dtype, **fields)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), dtype), variables)
    if "cross_weight" in variables["params"]:
        variables["params"]["cross_weight"] *= jnp.asarray([-1.0, 1.0, 0.0, 1.0], dtype)
    return net, variables


def with_stage(net, **fields):
    """The network with other fields of its pair stage."""
    return net.clone(pair_stage=net.pair_stage.clone(**fields))


def plain_distance(net, u, v):
    """The paper's distance of two images from their terms: nothing composed, nothing stored. For net.apply(method=...)."""
    individual = net.individual_head  # makes the parts
    stage = net.pair_stage
    keys_NE = u.image.nodes_ND if u.image.keys_NE is None else u.image.keys_NE
    near = neighbours_both(u.image, v.image, stage._weight("cross", keys_NE.shape[-1], keys_NE.dtype), stage.nearest)
    own = jnp.stack([u.image.nodes_ND, v.image.nodes_ND]).mean(axis=1, dtype=near[0].dtype)
    embedding = normalise(stage.conditional_head(own, jnp.stack(near), train=False).embedding)
    distance = 1 - embedding[0] @ embedding[1]
    del individual
    if u.clues is None:
        return distance
    return (1 - stage.clue_weight) * distance + stage.clue_weight * clue_distance(u.clues, v.clues)


# As programs: hundreds of single operations compile for longer than one program that holds them all.
compose = jax.jit(constants_of, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def describe(net, variables, constants, maps, dtype, parts=None):
    """Embeddings and stored terms of maps."""
    described = describe_maps(net, variables, maps, parts)
    return described.embedding, net.pair_stage.store(constants, described.terms, dtype)


@functools.partial(jax.jit, static_argnums=0)
def distances(net, constants, u, v):
    """Distances of one image's stored terms and those of others."""
    return net.pair_stage.distances(constants, u, v)


def terms_of(net, variables, maps, parts=None):
    """Terms of maps in test mode."""
    return applied(net, variables, maps, parts, method="describe").terms


def applied(net, variables, *arrays, mutable=(), **options):
    """net.apply, compiled once a network, method and shape."""
    return _compiled(net, tuple(mutable), tuple(options.items()))(variables, *arrays)


@functools.cache
def _compiled(net, mutable, options):
    return jax.jit(functools.partial(net.apply, mutable=list(mutable) or False, **dict(options)))
