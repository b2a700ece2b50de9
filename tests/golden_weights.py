"""Golden weights in a model's layout; the scripts in golden/ draw them by their published names."""

import jax
import jax.numpy as jnp
from flax import traverse_util


def shapes_of(model):
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def golden_variables(maker, model):
    """What `maker.weight` draws for every array of the model, found through its `torch_name`."""

    def draw(path, leaf):
        kernel = len(leaf.shape) == 4
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if kernel else leaf.shape
        value = maker.weight(model.torch_name(path), shape)
        return value.transpose(2, 3, 1, 0) if kernel else value

    flat = traverse_util.flatten_dict(shapes_of(model))
    return traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})
