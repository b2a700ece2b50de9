"""Alignment strategies against literal loops, alone and in the grid, in retrieval and over gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affinity, graph_conv
from tiny_retrieval import applied, compose, describe, distances, network, plain_distance, terms_of, with_stage

from cacenet_jax.errors import UserError
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.alignment import STRATEGIES, blocks, connect
from cacenet_jax.models.pair_stages.conditional.pair import conditional_maps, image_terms
from cacenet_jax.models.part_positions import part_positions

pytestmark = pytest.mark.usefixtures("x64")
node_parts = jax.jit(part_positions, static_argnums=(1, 2))
RNG = np.random.default_rng(0)
U, V = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4))
W, W_CROSS = RNG.standard_normal(4), RNG.standard_normal(4)
PARTS_U, PARTS_V = np.array([0, 1, 2, 2, 0, 3]), np.array([2, 0, 1, 1, 2, 0])


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def literal_block(strategy, left, right, *, weight, crossing, parts_left, parts_right, neighbours):
    """One edge at a time, from the words of sections 4.3.1 and 4.3.2."""
    if strategy in ("attention", "individual"):
        return affinity(left, right, weight) * (strategy == "attention" or not crossing)
    out = np.zeros((len(left), len(right)))
    for i in range(len(left)):
        for j in range(len(right)):
            if strategy == "part":
                out[i, j] = i == j
            elif strategy == "full":
                out[i, j] = 1
            elif strategy == "semantic":
                out[i, j] = parts_left[i] == parts_right[j] != 0
            elif strategy == "similarity":
                here = cosine(left[i], right[j])
                above_in_row = sum(cosine(left[i], other) > here for other in right)
                above_in_column = sum(cosine(other, right[j]) > here for other in left)
                out[i, j] = here > 0 and min(above_in_row, above_in_column) < neighbours
    return out


def literal(strategy, u, v, parts_u, parts_v, neighbours, intra=W, cross=W_CROSS):
    how = {"strategy": strategy, "neighbours": neighbours}
    block = lambda left, right, labels, weight, crossing: literal_block(
        left=left, right=right, parts_left=labels[0], parts_right=labels[1], weight=weight, crossing=crossing, **how
    )
    upper = [block(u, u, (parts_u, parts_u), intra, False), block(u, v, (parts_u, parts_v), cross, True)]
    lower = [block(v, u, (parts_v, parts_u), cross, True), block(v, v, (parts_v, parts_v), intra, False)]
    return np.concatenate([np.concatenate(upper, axis=1), np.concatenate(lower, axis=1)])


CASES = [(strategy, 1) for strategy in STRATEGIES] + [("similarity", 3)]
GIVEN = {"intra_weight_D": W, "cross_weight_D": W_CROSS, "parts_u_N": PARTS_U, "parts_v_M": PARTS_V}
compiled_blocks = jax.jit(blocks, static_argnames=("strategy", "neighbours"))


@pytest.mark.parametrize(("strategy", "neighbours"), CASES)
def test_blocks_are_those_of_the_literal_loop(strategy, neighbours):
    found = compiled_blocks(strategy, U, V, **GIVEN, neighbours=neighbours)
    expected = literal(strategy, U, V, PARTS_U, PARTS_V, neighbours)
    graph = np.block([[found.intra_u, found.cross], [found.cross.T, found.intra_v]])
    np.testing.assert_allclose(graph, expected, rtol=1e-12, atol=1e-12)


def test_a_top_k_selection_leaves_what_is_not_positive_and_takes_equals_together():
    scores = jnp.asarray([[0.5, 0.5, 0.1], [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    np.testing.assert_array_equal(connect(scores, 1), [[1, 1, 1], [0, 0, 0], [0, 0, 0]])  # 0.1 is its column's highest


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 12])
def test_a_top_k_selection_takes_those_with_fewer_than_k_above_them(count):
    scores = np.random.default_rng(2).integers(1, 9, (3, 12, 12)) / 8  # many are equal
    above = (scores[..., None, :] > scores[..., :, None]).sum(axis=-1)
    above_in_column = (scores[:, None] > scores[:, :, None]).sum(axis=2)
    expected = (above < count) | (above_in_column < count)
    np.testing.assert_array_equal(connect(jnp.asarray(scores), count), expected)


def test_similarity_has_no_gradient_through_its_choice():
    gradient = jax.jit(jax.grad(lambda u: blocks("similarity", u, V, neighbours=2).cross.sum()))(jnp.asarray(U))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("semantic", U, V), "found images without part labels"),
        (("nearest", U, V), "found 'nearest', expected one of attention"),
        (("part", U, V[:4]), "found maps of 6 and 4 positions"),
    ],
)
def test_what_cannot_be_is_one_line(given, words):
    with pytest.raises(UserError, match=words):
        blocks(*given)


def test_positions_have_the_most_frequent_part_of_their_pixels():
    pixels = np.zeros((4, 6), int)
    pixels[:2, :3] = [[1, 1, 2], [2, 2, 0]]  # part 2 more often than part 1
    pixels[:2, 3:] = [[3, 0, 0], [0, 0, 0]]  # nobody
    pixels[2:, :3] = [[5, 5, 0], [0, 0, 0]]  # a third
    pixels[2:, 3:] = [[7, 7, 7], [4, 4, 4]]  # equal: the lower label
    np.testing.assert_array_equal(node_parts(jnp.asarray(pixels[None]), 2, 2), [[2, 0, 5, 4]])


def test_positions_of_a_map_that_does_not_divide_the_image_share_its_pixels():
    pixels = np.repeat(np.array([1, 1, 2, 2, 3]), 3).reshape(5, 3)
    np.testing.assert_array_equal(node_parts(jnp.asarray(pixels[None]), 3, 1), [[1, 2, 3]])


# -- In the network -----------------------------------------------------------------------------------------------------

LABELS = np.random.default_rng(4).integers(0, 4, (3, 4, 2))
IMAGES = np.concatenate([np.random.default_rng(3).standard_normal((3, 4, 2, 3)), LABELS[..., None]], axis=-1)


def tiny(strategy, neighbours, **fields):
    """A network whose maps are the image's pixels; the part of a position is that of its pixel."""
    net, variables = network(jnp.float64, alignment="attention", **fields)
    net = with_stage(net, alignment=strategy, neighbours=neighbours)
    images = IMAGES if net.image_channels == 4 else IMAGES[..., :3]
    return net, variables, jnp.asarray(images)


def looked_at(net, variables, images):
    """Maps, and the part of each position."""
    maps = applied(net, variables, images[..., :3], train=False, method="maps")
    return maps, node_parts(images[..., 3], 4, 2) if net.image_channels == 4 else None


def nodes_of(images):
    x = np.asarray(images)[..., :3]
    return np.concatenate([x, x[..., :1] * x[..., 1:2]], axis=-1).reshape(len(x), -1, 4)


@pytest.mark.parametrize(("strategy", "neighbours"), CASES)
def test_the_grid_is_that_of_the_literal_graphs(strategy, neighbours):
    net, variables, images = tiny(strategy, neighbours)
    _, grid = applied(net, variables, images, train=False)
    nodes, labels = nodes_of(images), LABELS.reshape(3, -1)
    weights = [np.asarray(variables["params"][f"{name}_weight"]) / 4 for name in ("intra", "cross")]
    head = variables["params"]["conditional_head"]
    stats = variables["batch_stats"]["conditional_head"]["head"]["bn"]
    for u in range(3):
        for v in range(3):
            graph = literal(strategy, nodes[u], nodes[v], labels[u], labels[v], neighbours, *weights)
            maps_u = graph_conv(graph, np.concatenate([nodes[u], nodes[v]]), head["theta"], "discrepancy")[:8]
            encoded = maps_u.mean(axis=0) @ np.asarray(head["head"]["conv"]["kernel"])
            scale = np.asarray(head["head"]["bn"]["scale"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
            expected = (encoded - stats["mean"]) * scale + head["head"]["bn"]["bias"]
            np.testing.assert_allclose(grid.conditional.embedding[u, v], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("strategy", "neighbours", "keys"), [*((*case, "raw") for case in CASES), ("individual", 1, "correlation")]
)
def test_retrieval_scores_pairs_as_the_network_does(strategy, neighbours, keys):
    net, variables, images = tiny(strategy, neighbours, keys=keys)
    maps, parts = looked_at(net, variables, images)
    terms = terms_of(net, variables, maps, parts)
    constants = compose(net, variables)
    _, stored = describe(net, variables, constants, maps, jnp.float64, parts)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    for u in range(3):
        found = distances(net, constants, take(stored, u), stored)
        expected = [applied(net, variables, take(terms, u), take(terms, v), method=plain_distance) for v in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("strategy", "neighbours"), CASES)
def test_conditional_maps_are_those_of_the_literal_convolution(strategy, neighbours):
    graph = compiled_blocks(strategy, U, V, **GIVEN, neighbours=neighbours)
    expected = jax.jit(laplacian_conv)(graph, U, V)
    net, variables, _ = tiny(strategy, neighbours)
    params = {**variables["params"], "intra_weight": jnp.asarray(4 * W), "cross_weight": jnp.asarray(4 * W_CROSS)}
    bound = net.bind({**variables, "params": params})
    _ = bound.individual_head  # makes the parts
    stage = bound.pair_stage
    keys = [stage._keys(jnp.asarray(x)[None], jnp.asarray(p)[None], False) for x, p in ((U, PARTS_U), (V, PARTS_V))]
    keys = [jnp.asarray(x) if k is None else k[0] for x, k in zip((U, V), keys, strict=True)]
    own = jax.jit(image_terms, static_argnums=3)
    weight = lambda block: stage._weight(block, keys[0].shape[-1], keys[0].dtype)
    terms = [own(x, weight("intra"), k, stage.nearest) for x, k in zip((U, V), keys, strict=True)]
    maps = jax.jit(conditional_maps, static_argnums=(3, 4))
    found = maps(*terms, weight("cross"), "discrepancy", stage.nearest)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_rule_has_no_weights_to_learn_and_an_individual_graph_no_cross_weight():
    for strategy, expected in (
        ("full", set()),
        ("individual", {"intra_weight"}),
        ("attention", {"intra_weight", "cross_weight"}),
    ):
        net = with_stage(network(jnp.float32)[0], alignment=strategy)
        params = jax.eval_shape(
            lambda key, net=net: net.init(key, jnp.zeros((2, 2, 2, 3)), train=False), jax.random.key(0)
        )
        params = params["params"]
        assert {name for name in params if name.endswith("_weight")} == expected


def test_the_graph_of_a_rule_has_no_backward_pass():
    """Its keys and weights are constants or stopped: nothing asks for products that would be zero."""

    def grid(net, maps, parts):
        nodes = maps.reshape(len(maps), -1, maps.shape[-1])
        return net.pair_stage.grid(nodes, parts, net._branch(), train=False)

    def products_of_gradient(strategy):
        net, variables, images = tiny(strategy, 2)
        maps, parts = looked_at(net, variables, images)
        total = lambda maps: net.apply(variables, maps, parts, method=grid).conditional.embedding.sum()
        forward, both = (str(jax.make_jaxpr(form)(maps)).count("dot_general[") for form in (total, jax.grad(total)))
        return both - forward

    learned = products_of_gradient("attention")
    assert all(products_of_gradient(rule) < learned / 2 for rule in ("full", "semantic", "similarity"))


def test_pooled_part_and_full_alignment_are_the_same_thing():
    """Both leave (mean_u - mean_v) / 2: a mean over positions cannot see which of them were neighbours."""
    for u, v in ((U, V), (V, U)):
        graphs = [compiled_blocks(strategy, u, v) for strategy in ("part", "full")]
        found = [jax.jit(laplacian_conv)(graph, u, v)[0].mean(axis=0) for graph in graphs]
        np.testing.assert_allclose(found[0], (u.mean(axis=0) - v.mean(axis=0)) / 2, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)
