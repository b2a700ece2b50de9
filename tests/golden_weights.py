"""Golden weights in a model's layout; the scripts in golden/ draw them by their published names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def shapes_of(model):
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def torch_shape(path, shape):
    """The published shape of an array: kernels are OIHW, and matrices are 1x1 convolutions."""
    if len(shape) == 4:
        return tuple(shape[i] for i in (3, 2, 0, 1))
    return (*shape[::-1], 1, 1) if path[-1] == "kernel" else tuple(shape)


def to_torch(path, value):
    value = np.asarray(value)
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T[..., None, None] if path[-1] == "kernel" else value


def golden_variables(maker, model):
    """What `maker.weight` draws for every array of the model, found through its `torch_name`."""

    def draw(path, leaf):
        value = maker.weight(model.torch_name(path), torch_shape(path, leaf.shape))
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        return value.reshape(leaf.shape)

    flat = traverse_util.flatten_dict(shapes_of(model))
    return traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})


def assert_names_are(model, state):
    """`torch_name` maps the arrays of a model one to one onto a state dict (JSON of names and shapes), counters aside."""
    named = {}
    for path, leaf in traverse_util.flatten_dict(shapes_of(model)).items():
        name = model.torch_name(path)
        assert name not in named and name == model.torch_name("/".join(path[1:]))
        named[name] = list(torch_shape(path, leaf.shape))
    assert named == {name: shape for name, shape in state.items() if not name.endswith("num_batches_tracked")}
