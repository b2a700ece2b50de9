"""The composed pair stage against the plain one, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_retrieval import D, applied, compose, describe, network, plain_distance
from tiny_retrieval import distances as stored_distances

EVERY = [
    {"keys": keys, "filters": filters, "kind": kind, "clue_weight": clue_weight}
    for keys, filters, kind, clue_weight in [
        ("raw", "tied", "discrepancy", 0.0),
        ("raw", "untied", "normal", 0.4),
        ("l2", "tied", "normal", 0.0),
        ("standardised", "untied", "discrepancy", 0.0),
        ("correlation", "untied", "discrepancy", 0.9),
        ("correlation", "tied", "normal", 0.0),
    ]
]


IMAGES = np.random.default_rng(0).standard_normal((3, 2, 2, 3))


def distances(net, variables, images, dtype):
    """By the plain form and by the composed one, (images, images) each."""
    maps = applied(net, variables, jnp.asarray(images), train=False, method="maps")
    plain = applied(net, variables, maps, method="describe")
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    pair = lambda i, j: applied(net, variables, take(plain.terms, i), take(plain.terms, j), method=plain_distance)
    expected = np.array([[pair(i, j) for j in range(len(images))] for i in range(len(images))])
    constants = compose(net, variables)
    embedding, terms = describe(net, variables, constants, maps, dtype)
    np.testing.assert_allclose(embedding, plain.embedding, rtol=1e-6)
    group = lambda i: stored_distances(net, constants, take(terms, i), terms)
    return expected, np.array([group(i) for i in range(len(images))]), terms


@pytest.mark.parametrize("fields", EVERY, ids=str)
def test_composed_form_is_the_plain_form(x64, fields):
    net, variables = network(**fields)
    expected, found, _ = distances(net, variables, IMAGES, jnp.float64)
    # An image against itself: the plain form's clue distance takes a root of rounding errors there.
    tolerance = np.where(np.eye(3), 1e-3, 1e-12)
    assert (np.abs(found - expected) <= tolerance).all(), found - expected
    np.testing.assert_allclose(found, found.T, rtol=1e-12, atol=1e-12)


def test_isolated_nodes_and_black_images_have_no_nan(x64):
    net, variables = network(keys="correlation", filters="untied")
    variables["params"]["cross_threshold"] = jnp.asarray([2.0])  # above every correlation: no edge across
    variables["params"]["intra_threshold"] = jnp.asarray([2.0])
    expected, found, _ = distances(net, variables, np.concatenate([0 * IMAGES[:1], IMAGES[1:]]), jnp.float64)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("fields", EVERY, ids=str)
def test_bfloat16_terms_of_a_float32_network_give_close_distances(fields):
    net, variables = network(jnp.float32, **fields)
    expected, found, terms = distances(net, variables, IMAGES.astype(np.float32), jnp.bfloat16)
    assert found.dtype == np.float32
    assert terms.keys_NE.dtype == terms.values_NF.dtype == terms.intra_NN.dtype == jnp.bfloat16
    assert terms.own_F.dtype == terms.degree_N.dtype == jnp.float32
    assert terms.keys_NE.shape == (3, 4, D)  # without the channel of the threshold
    apart = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found[apart], expected[apart], atol=0.02)
