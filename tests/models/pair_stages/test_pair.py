"""The pooled pair stage of one pair against the literal one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PAIR_CASES, finite_difference, max_relative, pair_case, pair_maps

from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional import pair

KINDS = ("discrepancy", "normal")
ARGUMENTS = (0, 1, 2, 3)


def literal_pooled(nodes_u, nodes_v, intra, cross, kind):
    maps = laplacian_conv(correspondence(nodes_u, nodes_v, intra, cross), nodes_u, nodes_v, None, kind)
    return tuple(x.mean(axis=0) for x in maps)


def objective(form, kind, weigh, *inputs):
    pooled_u, pooled_v = form(*inputs, kind)
    return weigh[0] @ pooled_u + weigh[1] @ pooled_v + (pooled_u * pooled_v).sum()


# Compiled once a shape, not once a case.
pooled_pair = jax.jit(pair.pooled_pair, static_argnames="kind")
gradient = jax.jit(jax.grad(objective, (3, 4, 5, 6)), static_argnums=(0, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIR_CASES)
def test_pooled_pair_equals_mean_of_the_loop(x64, case, kind):
    inputs = pair_case(case)
    expected = [maps.mean(axis=0) for maps in pair_maps(*inputs, kind=kind)]
    for have, want in zip(pooled_pair(*inputs, kind=kind), expected, strict=True):
        assert have.dtype == jnp.float64
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIR_CASES)
def test_pooled_pair_has_the_gradient_of_the_literal_form(x64, case, kind):
    inputs = [jnp.asarray(x) for x in pair_case(case)]
    weigh = np.random.default_rng(3).standard_normal((2, 3))
    fast, literal = (gradient(form, kind, weigh, *inputs) for form in (pair.pooled_pair, literal_pooled))
    for have, want in zip(fast, literal, strict=True):
        assert np.isfinite(have).all()
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("argument", ARGUMENTS, ids=["nodes_u", "nodes_v", "intra_weight", "cross_weight"])
def test_pooled_pair_gradient_equals_finite_differences_of_the_loop(x64, argument):
    inputs = list(pair_case("positive"))
    rng = np.random.default_rng(4)
    weigh, direction = rng.standard_normal((2, 3)), rng.standard_normal(inputs[argument].shape)

    def at(function, x):
        out_u, out_v = function(*inputs[:argument], x, *inputs[argument + 1 :])
        return weigh[0] @ out_u + weigh[1] @ out_v

    slope = (jax.jit(jax.grad(lambda x: at(pair.pooled_pair, x)))(jnp.asarray(inputs[argument])) * direction).sum()
    mean_maps = lambda *x: [maps.mean(axis=0) for maps in pair_maps(*x)]
    expected = finite_difference(lambda x: at(mean_maps, x), inputs[argument], direction)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize("case", PAIR_CASES)
def test_float32_has_no_nan_at_any_scale(case):
    inputs = [jnp.asarray(x, jnp.float32) for x in pair_case(case)]
    for scale in (1e-30, 1e-15, 1e-13, 1.0, 1e8):
        nodes_u, nodes_v = inputs[0] * scale, inputs[1] * scale
        arguments = nodes_u, nodes_v, *inputs[2:]
        weigh = np.full((2, 3), 1 / scale, np.float32)
        assert all(np.isfinite(x).all() for x in pooled_pair(*arguments)), scale
        assert all(np.isfinite(x).all() for x in gradient(pair.pooled_pair, "discrepancy", weigh, *arguments)), scale


def test_bfloat16_nodes_give_float32_means():
    nodes_u, nodes_v, *weights = (jnp.asarray(x, jnp.float32) for x in pair_case("positive", channels=16))
    exact = pair.pooled_pair(nodes_u, nodes_v, *weights)
    rounded = pair.pooled_pair(nodes_u.astype(jnp.bfloat16), nodes_v.astype(jnp.bfloat16), *weights)
    for have, want in zip(rounded, exact, strict=True):
        assert have.dtype == jnp.float32
        assert max_relative(have, want) < 0.05


def test_keys_decide_affinities_and_nodes_are_moved(x64):
    nodes_u, nodes_v, intra, cross = pair_case("mixed")
    rng = np.random.default_rng(8)
    keys_u, keys_v = rng.standard_normal(nodes_u.shape), rng.standard_normal(nodes_v.shape)
    u, v = pair.image_terms(nodes_u, intra, keys_u), pair.image_terms(nodes_v, intra, keys_v)
    literal = laplacian_conv(correspondence(keys_u, keys_v, intra, cross), nodes_u, nodes_v)
    for own, near, maps in zip((nodes_u, nodes_v), pair.neighbours_both(u, v, cross), literal, strict=True):
        np.testing.assert_allclose(own.mean(axis=0) - near, maps.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIR_CASES)
def test_conditional_maps_are_the_literal_ones(x64, case, kind):
    nodes_u, nodes_v, intra, cross = pair_case(case)
    u, v = pair.image_terms(nodes_u, intra), pair.image_terms(nodes_v, intra)
    expected = pair_maps(nodes_u, nodes_v, intra, cross, kind=kind)
    for have, want in zip(pair.conditional_maps(u, v, cross, kind), expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12)
