"""The numbers behind figures 4 and 5 against the literal graph, pair by pair."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_retrieval import network

from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.alignment import blocks
from cacenet_jax.models.pixels import MEAN, STD, normalise_images
from cacenet_jax.models.scoring import scoring
from cacenet_jax.visualize.network import compare, cosine, look

IMAGES = np.random.default_rng(3).integers(0, 256, (2, 3, 2, 3), np.uint8)


class Slanted(nn.Module):
    """A backbone that does not see a mirrored image as the mirrored map."""

    channels: int = 4
    pixel_mean, pixel_std = MEAN, STD

    def __call__(self, x, *, train):
        return jnp.concatenate([x, x[..., :1]], axis=-1) * jnp.arange(1, x.shape[2] + 1)[:, None]


def seen_together(fields):
    net, variables = network(jnp.float32, **fields)
    seen = look(net, variables, IMAGES, False)
    one = lambda i: jax.tree.map(lambda x: x[i], seen)
    nodes = np.asarray(seen.maps_nhwD, np.float64).reshape(2, -1, seen.maps_nhwD.shape[-1])
    return net, variables, nodes, compare(net, variables, one(0), one(1))


@pytest.mark.parametrize(("filters", "kind"), [("tied", "discrepancy"), ("untied", "normal")])
def test_norms_are_those_of_the_literal_graph(filters, kind):
    _, variables, (u, v), pair = seen_together({"filters": filters, "kind": kind})
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    weights = [params[f"{which}_weight"] / u.shape[1] for which in ("intra", "cross")]
    graph = correspondence(u, v, *weights)
    head = params["conditional_head"]
    if filters == "tied":
        expected = laplacian_conv(graph, u, v, head["theta"], kind)[0]
    else:  # equation 5: a filter for the node, another for its neighbours
        expected = u @ head["theta"] + (laplacian_conv(graph, u, v, None, kind)[0] - u) @ head["theta_1"]
    by_hand = [sum(x**2 for x in row) ** 0.5 for row in np.asarray(expected).tolist()]
    np.testing.assert_allclose(pair.norm_N, by_hand, rtol=2e-5)
    np.testing.assert_allclose(pair.correspondence_NM, graph.cross, rtol=2e-5, atol=1e-6)
    assert np.ptp(by_hand) > 0.01 and (np.asarray(graph.cross) > 0).any()


@pytest.mark.parametrize("strategy", ["individual", "part", "similarity"])
def test_cross_block_is_that_of_the_strategy(strategy):
    _, variables, (u, v), pair = seen_together({"alignment": strategy, "neighbours": 2})
    learned = {name: value / u.shape[1] for name, value in variables["params"].items() if name == "intra_weight"}
    graph = blocks(strategy, u, v, neighbours=2, intra_weight_D=learned.get("intra_weight"))
    np.testing.assert_allclose(pair.correspondence_NM, graph.cross, atol=1e-6)
    theta = np.asarray(variables["params"]["conditional_head"]["theta"], np.float64)
    expected = laplacian_conv(graph, u, v, theta)[0]
    np.testing.assert_allclose(pair.norm_N, np.linalg.norm(expected, axis=1), rtol=2e-5, atol=1e-6)


def test_key_points_have_lines_but_no_conditional_map():
    _, variables, (u, v), pair = seen_together({"stage": "keypoints"})
    weight = np.asarray(variables["params"]["cross_weight"], np.float64) / u.shape[1]
    np.testing.assert_allclose(pair.correspondence_NM, np.maximum((u * weight) @ v.T, 0), rtol=2e-5, atol=1e-6)
    assert pair.norm_N is None


def test_maps_are_those_of_retrieval():
    """The embedding that retrieval keeps follows from the map that is shown, mirrored or not."""
    net, variables = network(jnp.float32)
    net = net.clone(backbone=Slanted())
    for flip in (False, True):
        seen = look(net, variables, IMAGES, flip)
        functions = scoring(net, flip, "float32")
        kept = jax.jit(functions.describe)((variables, functions.compose(variables)), jnp.asarray(IMAGES))
        shown = jax.jit(lambda maps: net.apply(variables, maps, train=False, method="individual"))(seen.maps_nhwD)
        expected = shown.embedding / jnp.linalg.norm(shown.embedding, axis=1, keepdims=True)
        np.testing.assert_allclose(expected, kept.embedding, atol=1e-5)
    plain = Slanted()(normalise_images(jnp.asarray(IMAGES)), train=False)
    assert not np.allclose(seen.maps_nhwD, plain, rtol=1e-2)


def test_cosine_of_every_pair():
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    u[1] = 0
    found = np.asarray(cosine(u, v))
    for i in range(3):
        for j in range(4):
            expected = 0 if i == 1 else u[i] @ v[j] / (u[i] @ u[i] * (v[j] @ v[j])) ** 0.5
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_correspondences_of_local_evidence_are_the_shares_of_its_alignment():
    _, variables, (u, v), pair = seen_together({"stage": "evidence", "features": 3})
    part = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["local_evidence"])
    stats = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["batch_stats"]["local_evidence"]["norm"])
    key_u, key_v = ((x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) @ part["key"]["kernel"] for x in (u, v))
    size = lambda x: np.linalg.norm(x, axis=1, keepdims=True)
    strength = np.exp(np.exp(part["log_tau"]) * (key_u / size(key_u)) @ (key_v / size(key_v)).T)
    np.testing.assert_allclose(pair.correspondence_NM, strength / strength.sum(axis=1, keepdims=True), rtol=1e-4)
    assert pair.norm_N is None


def test_norms_of_the_graph_of_bottlenecks_are_those_of_its_conditional_map():
    fields = {"stage": "released", "pooling": "gem", "relu": True}
    _, variables, nodes, pair = seen_together(fields)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["pair_graph"])
    y, g, o = (params[name]["kernel"] for name in ("y", "g", "o"))
    both = np.concatenate(nodes)
    keys = both @ y / np.abs(both @ y)  # one channel
    graph = np.maximum(keys @ keys.T, 0) * (1 - np.eye(len(both)))
    root = graph.sum(axis=1) ** -0.5
    laplacian = root[:, None] * (np.diag(graph.sum(axis=1)) - graph) * root
    expected = (both + laplacian @ (both @ g) @ o)[: len(nodes[0])]
    np.testing.assert_allclose(pair.norm_N, np.linalg.norm(expected, axis=1), rtol=1e-4)
    np.testing.assert_allclose(pair.correspondence_NM, graph[: len(nodes[0]), len(nodes[0]) :], atol=1e-5)
