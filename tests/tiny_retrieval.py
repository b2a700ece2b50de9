"""A network whose feature maps are the pixels of the image, shared by the tests of inference and of retrieval."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.pair_stages.conditional import stored
from cacenet_jax.models.pixels import MEAN, STD

D, F, I = 4, 3, 5


class Pixels(nn.Module):
    """Backbone that returns the pixels of the image as a map of D channels, some of them negative."""

    channels: int = D
    pixel_mean, pixel_std = MEAN, STD

    def __call__(self, x, *, train):
        return jnp.concatenate([x, (x[..., :1] * x[..., 1:2])], axis=-1)


def network(dtype=jnp.float64, **fields):
    """Network and random variables of a dtype; w' has channels of both signs and one that is 0."""
    net = CACENet(backbone=Pixels(), num_identities=I, embed_dim=F, dtype=dtype, **fields)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), dtype), variables)
    if "cross_weight" in variables["params"]:
        variables["params"]["cross_weight"] *= jnp.asarray([-1.0, 1.0, 0.0, 1.0], dtype)
    return net, variables


# Jitted: one program compiles faster than hundreds of single operations.
compose = jax.jit(stored.compose, static_argnums=0)
describe = jax.jit(stored.describe, static_argnums=(0, 4))
group_distance = jax.jit(stored.group_distance, static_argnums=(3, 4))


def applied(net, variables, *arrays, mutable=(), **options):
    """Run net.apply, compiled once for each network, method and shape."""
    return _compiled(net, tuple(mutable), tuple(options.items()))(variables, *arrays)


@functools.cache
def _compiled(net, mutable, options):
    return jax.jit(functools.partial(net.apply, mutable=list(mutable) or False, **dict(options)))
