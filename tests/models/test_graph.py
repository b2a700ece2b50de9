"""The literal graph convolution against loops over nodes (equations 6 and 7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PAIR_CASES, finite_difference, graph_conv, max_relative, pair_case, pair_maps

from cacenet_jax.errors import UserError
from cacenet_jax.models.attention import Adjacency, correspondence
from cacenet_jax.models.graph import inverse_sqrt_degree, laplacian_conv, neighbour_sign

KINDS = ("discrepancy", "normal")
conv = jax.jit(laplacian_conv, static_argnames="kind")  # compiled once a shape, not once a case
graph_of = jax.jit(correspondence)


def random_theta(channels=3, features=2):
    return np.random.default_rng(5).standard_normal((channels, features))


@pytest.mark.parametrize("with_theta", [False, True], ids=["identity", "theta"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIR_CASES)
def test_maps_equal_the_loop(x64, case, kind, with_theta):
    nodes_u, nodes_v, intra, cross = pair_case(case)
    theta = random_theta() if with_theta else None
    expected = pair_maps(nodes_u, nodes_v, intra, cross, theta, kind)
    found = conv(graph_of(nodes_u, nodes_v, intra, cross), nodes_u, nodes_v, theta, kind=kind)
    for have, want in zip(found, expected, strict=True):
        assert have.dtype == jnp.float64
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_discrepancy_annihilates_what_all_nodes_share(x64, kind):
    """On a regular graph the normalised Laplacian of a constant is 0, and the normal convolution doubles it."""
    nodes = np.full((4, 2), 3.0)
    out_u, out_v = laplacian_conv(correspondence(nodes, nodes, np.ones(2), np.ones(2)), nodes, nodes, None, kind)
    expected = {"discrepancy": 0.0, "normal": 6.0}[kind]
    np.testing.assert_allclose(np.concatenate([out_u, out_v]), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_isolated_nodes_pass_through(kind):
    nodes_u, nodes_v, intra, cross = (x.astype(np.float32) for x in pair_case("all_isolated"))
    out_u, out_v = laplacian_conv(correspondence(nodes_u, nodes_v, intra, cross), nodes_u, nodes_v, None, kind)
    np.testing.assert_array_equal(out_u, nodes_u)
    np.testing.assert_array_equal(out_v, nodes_v)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_finite_differences_of_the_loop(x64, kind):
    """The adjacency is an argument of its own here: no ReLU is in the way."""
    rng = np.random.default_rng(2)
    nodes, theta = rng.standard_normal((5, 3)), random_theta()
    half = rng.uniform(0.1, 1, (5, 5))
    graph = half + half.T
    weigh, step_nodes, step_graph = (rng.standard_normal(s) for s in [(5, 2), (5, 3), (5, 5)])
    step_graph = step_graph + step_graph.T

    def fast(nodes, graph):
        blocks = Adjacency(graph[:3, :3], graph[3:, 3:], graph[:3, 3:])
        return (weigh * jnp.concatenate(laplacian_conv(blocks, nodes[:3], nodes[3:], theta, kind))).sum()

    # The lower left block is not an argument of its own, so its step belongs to the upper right one.
    d_nodes, d_graph = jax.jit(jax.grad(fast, (0, 1)))(jnp.asarray(nodes), jnp.asarray(graph))
    along_nodes = finite_difference(lambda x: (weigh * graph_conv(graph, x, theta, kind)).sum(), nodes, step_nodes)
    along_graph = finite_difference(lambda a: (weigh * graph_conv(a, nodes, theta, kind)).sum(), graph, step_graph)
    np.testing.assert_allclose((d_nodes * step_nodes).sum(), along_nodes, rtol=1e-6)
    np.testing.assert_allclose((d_graph * step_graph).sum(), along_graph, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_root_of_degree_has_no_nan(x64, dtype):
    degree = np.array([0, 4, 0.25, 1e-25, 1e30], dtype)  # the gradient at 1e-26 is beyond float32
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(inverse_sqrt_degree)))(jnp.asarray(degree))
    assert value.dtype == grad.dtype == dtype
    np.testing.assert_allclose(value[:3], [0, 0.5, 2])
    np.testing.assert_allclose(grad[:3], [0, -1 / 16, -4])
    assert np.isfinite(value).all() and np.isfinite(grad).all()


def test_bfloat16_nodes_give_float32_maps():
    arrays = [x.astype(np.float32) for x in pair_case("positive", channels=16)]
    nodes_u, nodes_v = arrays[0].astype(jnp.bfloat16), arrays[1].astype(jnp.bfloat16)
    exact = laplacian_conv(correspondence(*arrays), *arrays[:2])
    rounded = laplacian_conv(correspondence(nodes_u, nodes_v, *arrays[2:]), nodes_u, nodes_v)
    for have, want in zip(rounded, exact, strict=True):
        assert have.dtype == jnp.float32
        assert max_relative(have, want) < 0.02


def test_unknown_kind_names_both_sides():
    with pytest.raises(UserError, match=r"'spectral'.*discrepancy"):
        neighbour_sign("spectral")
