"""The key-point similarity against a literal loop, its gradient for w', in the network and in retrieval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affinity, finite_difference
from tiny_retrieval import applied, compose, describe, distances, network, terms_of

from cacenet_jax.losses import LossWeights, batch_hard_triplet
from cacenet_jax.models.pair_stages import keypoints
from cacenet_jax.models.pair_stages.keypoints import key_points
from cacenet_jax.train_step import loss_terms

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
key_point_distance = jax.jit(keypoints.key_point_distance)


def literal(u, v, weight):
    """1 - the mean cosine of positive pairs, each weighed by its affinity, one pair at a time."""
    strength = affinity(u, v, weight)
    above = below = 0.0
    for i in range(len(u)):
        for j in range(len(v)):
            size = np.sqrt((u[i] ** 2).sum() * (v[j] ** 2).sum())
            above += strength[i, j] * (u[i] @ v[j] / size if size else 0.0)
            below += strength[i, j]
    return 1 - (above / below if below else 0.0)


@pytest.mark.parametrize("case", ["mixed", "zero node", "no pair"])
def test_distance_is_that_of_the_literal_loop_and_symmetric(case):
    u, v, weight = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal(3)
    if case == "zero node":
        u[1] = 0
    if case == "no pair":
        u, v, weight = abs(u), abs(v), -abs(weight)
    found = key_point_distance(key_points(u), key_points(v), weight)
    np.testing.assert_allclose(found.distance, literal(u, v, weight), rtol=1e-12)
    np.testing.assert_allclose(found.positive, (affinity(u, v, weight) > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        key_point_distance(key_points(v), key_points(u), weight).distance, found.distance, rtol=1e-12
    )


def test_gradient_for_the_weights_is_the_difference_quotient_and_finite_without_a_pair():
    u, v, weight, direction = (RNG.standard_normal(s) for s in ((5, 3), (4, 3), 3, 3))
    distance = lambda w: key_point_distance(key_points(u), key_points(v), w).distance
    found = jax.jit(jax.grad(distance))(jnp.asarray(weight)) @ direction
    np.testing.assert_allclose(found, finite_difference(distance, weight, direction), rtol=1e-6)
    assert abs(found) > 1e-6
    none = lambda u, w: key_point_distance(key_points(abs(u)), key_points(abs(v)), w).distance
    for gradient in jax.jit(jax.grad(none, (0, 1)))(jnp.asarray(u), jnp.asarray(-abs(weight))):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("keys", ["raw", "l2", "correlation"])
@pytest.mark.parametrize("memory", [1024.0, 0.0006])
def test_network_trains_and_scores_by_it(keys, memory):
    net, variables = network(jnp.float64, stage="keypoints", keys=keys, memory_mib=memory)
    assert {name for name in variables["params"] if "weight" in name} == {"cross_weight"}
    assert "conditional_head" not in variables["params"]
    images, labels = jnp.asarray(RNG.standard_normal((4, 3, 2, 3))), jnp.asarray([0, 0, 1, 1])
    maps = applied(net, variables, images, train=False, method="maps")
    individual, grid = applied(net, variables, images, train=False)
    terms = terms_of(net, variables, maps)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    constants = compose(net, variables)
    pair = lambda u, v: key_point_distance(take(terms, u), take(terms, v), constants).distance
    expected = [[pair(u, v) for v in range(4)] for u in range(4)]
    np.testing.assert_allclose(grid.distance, expected, rtol=1e-9)
    found = loss_terms(net, individual, grid, labels, jnp.arange(4), LossWeights())
    assert set(found) == {"identity", "triplet", "pair_triplet"}
    np.testing.assert_allclose(found["pair_triplet"], batch_hard_triplet(grid.distance, labels, 0.5), rtol=1e-9)
    _, stored = describe(net, variables, constants, maps, jnp.float64)
    assert len(jax.tree.leaves(stored)) == (1 if keys == "raw" else 2)  # a map that is its own keys is kept once
    found = jnp.stack([distances(net, constants, take(stored, u), stored) for u in range(4)])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
