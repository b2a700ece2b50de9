"""Correspondence attention against loops over nodes and channels (equations 2-4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PAIR_CASES, affinity, finite_difference, full_graph, max_relative, pair_case

from cacenet_jax.models import attention

BLOCKS = ("intra_u", "intra_v", "cross")


@pytest.mark.parametrize("case", PAIR_CASES)
def test_blocks_equal_the_loop(x64, case):
    nodes_u, nodes_v, intra, cross = pair_case(case)
    graph = full_graph(nodes_u, nodes_v, intra, cross)
    count = len(nodes_u)
    expected = graph[:count, :count], graph[count:, count:], graph[:count, count:]
    for found, want in zip(attention.correspondence(nodes_u, nodes_v, intra, cross), expected, strict=True):
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, want, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(graph[count:, :count], graph[:count, count:].T, atol=1e-13)  # T_vu = T_uv^T


@pytest.mark.parametrize("argument", range(4), ids=["nodes_u", "nodes_v", "intra_weight", "cross_weight"])
def test_gradient_equals_finite_differences(x64, argument):
    inputs = list(pair_case("mixed"))
    rng = np.random.default_rng(1)
    weigh = {name: rng.standard_normal(np.shape(block)) for name, block in zip(BLOCKS, affine(inputs), strict=True)}

    def objective(x):
        blocks = attention.correspondence(*inputs[:argument], x, *inputs[argument + 1 :])
        return sum((weigh[name] * getattr(blocks, name)).sum() for name in BLOCKS)

    def literal(x):
        arguments = [*inputs[:argument], x, *inputs[argument + 1 :]]
        return sum((weigh[name] * block).sum() for name, block in zip(BLOCKS, affine(arguments), strict=True))

    direction = rng.standard_normal(inputs[argument].shape)
    slope = (jax.grad(objective)(jnp.asarray(inputs[argument])) * direction).sum()
    np.testing.assert_allclose(slope, finite_difference(literal, inputs[argument], direction), rtol=1e-6)


def affine(arguments):
    nodes_u, nodes_v, intra, cross = arguments
    return (
        affinity(nodes_u, nodes_u, intra),
        affinity(nodes_v, nodes_v, intra),
        affinity(nodes_u, nodes_v, cross),
    )


def test_negative_affinities_pass_no_gradient():
    nodes = jnp.ones((3, 2))
    value, grad = jax.value_and_grad(lambda w: attention.affinity(nodes, nodes, w).sum())(-jnp.ones(2))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_float32_and_bfloat16_give_float32(make):
    nodes_u, nodes_v, intra, cross = (make(x.astype(np.float32)) for x in pair_case("mixed", channels=16))
    full = attention.correspondence(nodes_u, nodes_v, intra, cross)
    half = attention.correspondence(nodes_u.astype(jnp.bfloat16), nodes_v.astype(jnp.bfloat16), intra, cross)
    for exact, rounded in zip(full, half, strict=True):
        assert exact.dtype == rounded.dtype == jnp.float32
        assert 0 < max_relative(rounded, exact) < 0.02
