"""Symmetries of the correspondence graph, for maps with equal, opposite and empty positions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.pair import pooled_pair

SIZES = ((1, 1, 1), (3, 2, 2), (4, 5, 3))  # N, M, D; few, because each is compiled
KINDS = ("discrepancy", "normal")

graph_of = jax.jit(correspondence)
pooled = jax.jit(pooled_pair, static_argnames="kind")


@jax.jit
def literal_means(nodes_u, nodes_v, intra, cross):
    """Means of the literal conditional maps, by kind."""
    graph = correspondence(nodes_u, nodes_v, intra, cross)
    return {kind: [out.mean(axis=0) for out in laplacian_conv(graph, nodes_u, nodes_v, kind=kind)] for kind in KINDS}


@st.composite
def pairs(draw):
    """Two maps and both weights of small whole numbers, whose products are exact; some rows are zero."""
    num_u, num_v, channels = draw(st.sampled_from(SIZES))
    array = lambda *shape: draw(hnp.arrays(np.float64, shape, elements=st.integers(-3, 3)))
    nodes_u, nodes_v = array(num_u, channels), array(num_v, channels)
    for nodes in (nodes_u, nodes_v):
        nodes[draw(hnp.arrays(bool, len(nodes)))] = 0
    return nodes_u, nodes_v, array(channels), array(channels)


@given(pairs())
@settings(max_examples=25)
def test_cross_blocks_are_each_others_transpose(pair):
    nodes_u, nodes_v, intra, cross = pair
    with jax.enable_x64(True):
        graphs = graph_of(nodes_u, nodes_v, intra, cross), graph_of(nodes_v, nodes_u, intra, cross)
    uv, vu = jax.device_get(graphs)
    np.testing.assert_array_equal(uv.cross, vu.cross.T)
    np.testing.assert_array_equal(uv.intra_u, uv.intra_u.T)
    np.testing.assert_array_equal(uv.intra_u, vu.intra_v)
    assert all((block >= 0).all() for block in uv)


@pytest.mark.parametrize("kind", KINDS)
@given(pairs())
@settings(max_examples=25)
def test_pooled_pair_is_the_mean_of_the_literal_maps(kind, pair):
    nodes_u, nodes_v, intra, cross = pair
    with jax.enable_x64(True):
        fast = pooled(*pair, kind=kind)
        literal = literal_means(*pair)[kind]
        swapped = pooled(nodes_v, nodes_u, intra, cross, kind=kind)
    for mean, expected in zip((*fast, *swapped), (*literal, *literal[::-1]), strict=True):
        np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-12)
