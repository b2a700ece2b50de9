"""Local evidence against a literal loop over regions, in value and gradient; in the network, in retrieval, in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import finite_difference, literal_evidence
from tiny_retrieval import applied, compose, describe, distances, network, terms_of

from cacenet_jax.models.pair_stages import evidence as module
from cacenet_jax.models.pair_stages.evidence import EvidenceParameters, Regions

evidence, evidence_distance = jax.jit(module.evidence), jax.jit(module.evidence_distance)
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
CHANNELS = 3


def judge(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((), (2 * CHANNELS, 6), 6, 6, (2 * CHANNELS, 4), 4, 4)
    return EvidenceParameters(*(rng.standard_normal(shape) for shape in shapes))


def regions(count, case="different"):
    value, key = RNG.standard_normal((count, CHANNELS)), RNG.standard_normal((count, CHANNELS))
    key /= np.linalg.norm(key, axis=1, keepdims=True)
    if case == "a key of zeros":
        key[0] = 0
    return Regions(value, key)


@pytest.mark.parametrize(("nodes", "case"), [((5, 4), "different"), ((1, 1), "different"), ((4, 6), "a key of zeros")])
def test_evidence_is_that_of_the_literal_loop(nodes, case):
    u, v = regions(nodes[0], case), regions(nodes[1], case)
    there, back = literal_evidence(judge(), *u, *v), literal_evidence(judge(), *v, *u)
    np.testing.assert_allclose(evidence(judge(), u, v), there, rtol=1e-12)
    assert len(u.key_NE) == 1 or abs(there - back) > 1e-3  # one side is not the other
    expected = 1 - (there + back) / 8
    np.testing.assert_allclose(evidence_distance(judge(), u, v), expected, rtol=1e-12)
    np.testing.assert_allclose(evidence_distance(judge(), v, u), expected, rtol=1e-12)


def test_gradient_is_the_difference_quotient_for_every_parameter_and_both_images():
    arguments, rng = jax.tree.map(jnp.asarray, (judge(), regions(5), regions(4))), np.random.default_rng(1)
    leaves, tree = jax.tree.flatten(arguments)
    found = jax.tree.leaves(jax.jit(jax.grad(lambda a: evidence(*a)))(arguments))
    for i, (leaf, gradient) in enumerate(zip(leaves, found, strict=True)):

        def literal(x, i=i):
            judged, u, v = tree.unflatten([*leaves[:i], x, *leaves[i + 1 :]])
            return literal_evidence(judged, *u, *v)

        direction = rng.standard_normal(leaf.shape)
        expected = finite_difference(literal, leaf, direction)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-8, err_msg=str(i))


@pytest.mark.parametrize("memory", [1024.0, 1e-4])
def test_network_and_retrieval_score_by_it(memory):
    net, variables = network(jnp.float64, stage="evidence", features=5, memory_mib=memory)
    assert set(variables["params"]) == {"individual_head", "local_evidence"}
    part = variables["params"]["local_evidence"]
    variables["params"]["local_evidence"] = jax.tree.map(
        lambda x: jnp.asarray(0.5 * RNG.standard_normal(x.shape)), part
    )
    images = jnp.asarray(RNG.standard_normal((4, 3, 2, 3)))
    _, grid = applied(net, variables, images, train=False)
    maps = applied(net, variables, images, train=False, method="maps")
    terms = terms_of(net, variables, maps)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    constants = compose(net, variables)
    pair = lambda u, v: evidence_distance(constants, take(terms, u), take(terms, v))
    expected = [[pair(u, v) for v in range(4)] for u in range(4)]
    score = grid + grid.T
    np.testing.assert_allclose(1 - score / 8, expected, rtol=1e-9)
    assert np.std(expected) > 1e-4
    _, stored = describe(net, variables, constants, maps, jnp.float64)
    found = jnp.stack([distances(net, constants, take(stored, u), stored) for u in range(4)])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    rounded = describe(net, variables, constants, maps, jnp.bfloat16)[1]
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(rounded))
    np.testing.assert_allclose(distances(net, constants, take(rounded, 0), rounded), expected[0], atol=0.02)


def test_what_is_frozen_has_no_gradient():
    net, variables = network(jnp.float64, stage="evidence", features=5, frozen=True)
    images = jnp.asarray(RNG.standard_normal((4, 3, 2, 3)))

    def everything(params):
        (individual, grid), _ = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return individual.logits.sum() + individual.embedding.sum() + (grid**2).sum()

    found = jax.jit(jax.grad(everything))(variables["params"])
    assert all((x == 0).all() for x in jax.tree.leaves(found["individual_head"]))
    assert abs(found["local_evidence"]["judge_out"]).max() > 1e-6
