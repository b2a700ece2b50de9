"""Distances of embeddings: the default against a loop; a user's own one in training and in retrieval."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import batch_hard
from tiny_retrieval import applied, compose, describe, distances, network

from cacenet_jax.losses import GridLabels, LossWeights
from cacenet_jax.models.embedding_distance import DISTANCES, cosine


def unit(x):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def test_cosine_is_that_of_the_loop(x64):
    left, right = unit(np.random.default_rng(0).standard_normal((2, 4, 5)))
    expected = [1 - sum(a * b for a, b in zip(u, v, strict=True)) for u, v in zip(left, right, strict=True)]
    np.testing.assert_allclose(cosine(jnp.asarray(left), jnp.asarray(right)), expected, rtol=1e-13)
    np.testing.assert_allclose(cosine(jnp.asarray(left), -jnp.asarray(left)), 2, rtol=1e-13)


def test_equal_embeddings_are_exactly_0_apart_with_a_finite_gradient():
    x = jnp.asarray(unit(np.random.default_rng(0).standard_normal((3, 64))), jnp.float32)
    np.testing.assert_array_equal(cosine(x, x), 0)
    for gradient in jax.grad(lambda u, v: cosine(u, v).sum(), argnums=(0, 1))(x, x):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("stage", ["conditional", "released"])
def test_a_function_of_the_users_is_that_of_training_and_of_retrieval(x64, monkeypatch, stage):
    """Half a squared difference, here of the L1 norm: the triplet loss trains the L1 norm itself."""
    absolute = lambda left, right: jnp.abs(left - right).sum(axis=-1) ** 2 / 2
    monkeypatch.setitem(sys.modules, "of_a_user", types.SimpleNamespace(absolute=absolute))
    monkeypatch.setattr(DISTANCES, "_values", dict(DISTANCES._values))
    net, variables = network(stage=stage, embedding_distance="of_a_user:absolute")
    images = jnp.asarray(np.random.default_rng(3).standard_normal((4, 2, 2, 3)))
    _, grid = applied(net, variables, images, train=False)
    f = unit(np.asarray(grid.conditional.embedding))
    norm = np.array([[sum(abs(f[u, v] - f[v, u])) for v in range(4)] for u in range(4)])
    assert norm.std() > 1e-3

    labels = np.array([0, 0, 1, 1])
    of = GridLabels(jnp.asarray(labels), jnp.asarray(labels), jnp.arange(4))
    triplet = net.pair_stage.losses(grid, of, LossWeights(margin=0.5))["pair_triplet"]
    np.testing.assert_allclose(triplet.loss_R.mean(), batch_hard(norm, labels, 0.5), rtol=1e-10)

    constants = compose(net, variables)
    maps = applied(net, variables, images, train=False, method="maps")
    _, terms = describe(net, variables, constants, maps, jnp.float64)
    found = [distances(net, constants, jax.tree.map(lambda x, u=u: x[u], terms), terms) for u in range(4)]
    np.testing.assert_allclose(found, norm**2 / 2, rtol=1e-9, atol=1e-12)
