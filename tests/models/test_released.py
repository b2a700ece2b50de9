"""The released recipe against PyTorch (tests/golden/released.npz) and its graph against a literal loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from released import golden, golden_config, golden_network, golden_variables, maker, released_name

from cacenet_jax import experiment
from cacenet_jax.train_step import loss_terms

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
COUNT = 6  # images
# flax keeps the biased running variance, PyTorch the unbiased one.
VALUES = {"resnet.bn1": COUNT * 32 * 16, "resnet.layer2.1.bn1": COUNT * 8 * 4, "resnet.layer4.1.bn2": COUNT * 4 * 2}


def assert_close(found, expected, tolerance, name=""):
    """Relative to the largest value."""
    error = np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()
    assert error < tolerance, (name, error)


@pytest.fixture(params=["float32", pytest.param("float64", marks=pytest.mark.slow)])
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def setup(dtype):
    net = golden_network(dtype)
    variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), golden_variables(net))
    return net, variables, jnp.asarray(maker().images(), dtype)


def assert_outputs(out, mode, tolerance):
    individual, grid = out
    assert_close(individual.embedding, golden()[f"{mode}/embedding"], tolerance, "f(I)")
    assert_close(individual.logits, golden()[f"{mode}/logits"], tolerance, "scores of f(I)")
    assert_close(grid.conditional.embedding, golden()[f"{mode}/pair_embedding"], tolerance, "f(u|v)")
    assert_close(grid.conditional.logits, golden()[f"{mode}/pair_logits"], tolerance, "scores of f(u|v)")


def test_test_mode_is_pytorchs(dtype):
    net, variables, images = setup(dtype)
    assert_outputs(jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, images), "test", TOLERANCE[dtype])


def test_training_mode_is_pytorchs(dtype):
    """Outputs, losses, gradients and running statistics of one step."""
    net, variables, images = setup(dtype)
    labels, weights = jnp.asarray(maker().LABELS), experiment.read(golden_config()).loss
    names = {released_name(path): path for path in traverse_util.flatten_dict(variables["params"])}

    def loss(params):
        out, new = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        terms = loss_terms(net, *out, labels, jnp.arange(COUNT), weights)
        return sum(terms.values()), (out, terms, new["batch_stats"])

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (out, terms, statistics)), gradients = step(variables["params"])
    assert_outputs(out, "train", TOLERANCE[dtype])
    for name, value in terms.items():
        assert_close(value, golden()[f"loss/{name}"], TOLERANCE[dtype], name)
    gradients = traverse_util.flatten_dict(gradients)
    for name in maker().GRADIENTS:
        found = np.asarray(gradients[names[name]])
        found = found.transpose(3, 2, 0, 1) if found.ndim == 4 else found.T if found.ndim == 2 else found
        found = maker().thin(found)
        expected = golden()[f"gradient/{name}"].reshape(found.shape)
        assert_close(found, expected, 5 * TOLERANCE[dtype], name)  # sums of what cancels
    statistics, old = (
        {released_name(path): x for path, x in traverse_util.flatten_dict(tree).items()}
        for tree in (statistics, variables["batch_stats"])
    )
    for name in maker().STATISTICS:
        layer, what = name.rsplit(".", 1)
        expected = golden()[f"state/{name}"]
        if name == "embedding_layer.1.running_var":  # the images once, the grid twice
            images_F, grid_F, swapped_F = golden()["train/variances"]
            np.testing.assert_allclose(grid_F, swapped_F, rtol=1e-12)
            expected = 0.729 * old[name] + 0.081 * images_F + 0.19 * grid_F
        elif what == "running_var":
            expected = 0.9 * old[name] + (expected - 0.9 * old[name]) * (VALUES[layer] - 1) / VALUES[layer]
        assert_close(statistics[name], expected, TOLERANCE[dtype], name)
