"""The graph of bottlenecks against a literal loop; its pooling; its grid in blocks; what retrieval keeps of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import finite_difference
from tiny_retrieval import applied, compose, describe, distances, network, with_stage

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import resnet
from cacenet_jax.models.backbones.non_local import NonLocal
from cacenet_jax.models.pair_stages.released import (
    BottleneckGraph,
    BottleneckTerms,
    Encoder,
    bottleneck_maps,
    encoded_grid,
    root_of,
)
from cacenet_jax.models.pooling import generalised_mean

RNG = np.random.default_rng(0)
D = 32
RECIPE = {"stage": "released", "pooling": "gem", "relu": True}


def literal_map(y_DE, g_DE, o_ED, nodes_u_ND, nodes_v_MD, roots=None):
    """X + R (D - A) R G W_o, all N + M nodes, one pair of nodes at a time; the roots may be given (no gradient)."""
    nodes = np.concatenate([nodes_u_ND, nodes_v_MD])
    keys = [x @ y_DE for x in nodes]
    keys = [y / (np.sqrt((y**2).sum()) + 1e-12) for y in keys]
    graph = np.array([[max(a @ b, 0.0) if i != j else 0.0 for j, b in enumerate(keys)] for i, a in enumerate(keys)])
    degree = [row.sum() for row in graph]
    roots = [(d if d > 1e-3 else 1.0) ** -0.5 for d in degree] if roots is None else roots
    out = []
    for i, x in enumerate(nodes):
        moved = roots[i] * degree[i] * roots[i] * (x @ g_DE)
        for j, other in enumerate(nodes):
            moved = moved - roots[i] * graph[i, j] * roots[j] * (other @ g_DE)
        out.append(x + moved @ o_ED)
    return np.stack(out), roots


def graph_of(images_BND, seed=1):
    module = BottleneckGraph(D, jnp.float64)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(images_BND)))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), shapes)
    return module, params, [np.asarray(params[name]["kernel"]) for name in ("y", "g", "o")]


def maps_of(module, params, images_BND):
    terms = module.apply({"params": params}, images_BND)
    u, v = (jax.tree.map(lambda x, i=i: x[i], terms) for i in range(2))
    return bottleneck_maps(params["o"]["kernel"], u, v)


@pytest.mark.parametrize("case", ["different", "the same image", "a node of zeros", "hardly connected"])
def test_conditional_maps_are_those_of_the_literal_loop(x64, case):
    images = RNG.standard_normal((2, 5, D))
    if case == "the same image":
        images[1] = images[0]
    if case == "a node of zeros":
        images[0, 2] = 0
    module, params, weights = graph_of(images)
    if case == "hardly connected":  # keys of two channels: one affinity of 5e-4, the others 0
        params["y"]["kernel"] = weights[0] = np.eye(D, 2)
        images = images[:, :2]
        images[..., :2] = [[[1, 0], [-1, 0]], [[5e-4, 1], [0, -1]]]
    found = jax.jit(lambda x: maps_of(module, params, x))(jnp.asarray(images))
    expected, roots = literal_map(*weights, *images)
    assert case != "hardly connected" or roots == [1, 1, 1, 1]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-10, atol=1e-10)
    assert np.isfinite(expected).all()


def test_gradient_is_that_of_the_loop_with_constant_roots(x64):
    images, direction = RNG.standard_normal((2, 3, D)), RNG.standard_normal((2, 3, D))
    module, params, weights = graph_of(images)
    _, roots = literal_map(*weights, *images)

    def literal(images):
        return (literal_map(*weights, *images, roots=roots)[0] ** 2).sum()

    found = jax.jit(jax.grad(lambda x: sum((m**2).sum() for m in maps_of(module, params, x))))(jnp.asarray(images))
    np.testing.assert_allclose((found * direction).sum(), finite_difference(literal, images, direction), rtol=1e-6)
    through_all = finite_difference(lambda x: (literal_map(*weights, *x)[0] ** 2).sum(), images, direction)
    assert abs((found * direction).sum() / through_all - 1) > 1e-3  # the roots do depend on the images
    some = jnp.asarray([0.0, 1e-3, 2e-3])
    np.testing.assert_allclose(root_of(some), [1, 1, 2e-3**-0.5])
    black = jax.jit(jax.grad(lambda x: sum(m.sum() for m in maps_of(module, params, x))))(jnp.zeros((2, 3, D)))
    assert np.isfinite(black).all()


def test_generalised_mean_is_the_loop_in_value_and_gradient(x64):
    nodes, direction = RNG.standard_normal((4, D)), RNG.standard_normal((4, D))

    def literal(nodes, p):
        return np.array([(sum(max(x, 1e-6) ** p for x in column) / len(column)) ** (1 / p) for column in nodes.T])

    np.testing.assert_allclose(generalised_mean(nodes, jnp.asarray([2.6])), literal(nodes, 2.6), rtol=1e-12)
    np.testing.assert_allclose(generalised_mean(nodes, None), nodes.mean(axis=0), rtol=1e-12)
    by_nodes, by_p = jax.grad(lambda x, p: generalised_mean(x, p).sum(), argnums=(0, 1))(jnp.asarray(nodes), 2.6)
    expected = finite_difference(lambda x: literal(x, 2.6).sum(), nodes, direction)
    np.testing.assert_allclose((by_nodes * direction).sum(), expected, rtol=1e-6)
    expected = finite_difference(lambda p: literal(nodes, float(p)).sum(), np.asarray(2.6), np.asarray(1.0))
    np.testing.assert_allclose(by_p, expected, rtol=1e-6)


def test_non_local_block_is_the_loop_and_starts_as_nothing(x64):
    x = RNG.standard_normal((2, 2, 3, D))
    block = NonLocal(jnp.float64)
    variables = block.init(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_array_equal(block.apply(variables, jnp.asarray(x)), x)
    variables = jax.tree.map(lambda v: jnp.asarray(RNG.standard_normal(v.shape)), variables)
    layers = {name: (np.asarray(p["kernel"]), np.asarray(p["bias"])) for name, p in variables["params"].items()}
    expected = []
    for nodes in x.reshape(2, 6, D):
        g, theta, phi = ([node @ layers[name][0] + layers[name][1] for node in nodes] for name in ("g", "theta", "phi"))
        for i, node in enumerate(nodes):
            shares = np.exp([theta[i] @ other for other in phi])
            drawn = sum(share * value for share, value in zip(shares / shares.sum(), g, strict=True))
            expected.append(node + drawn @ layers["W"][0] + layers["W"][1])
    found = block.apply(variables, jnp.asarray(x))
    np.testing.assert_allclose(found, np.reshape(expected, x.shape), rtol=1e-9, atol=1e-9)
    with pytest.raises(
        UserError, match=r"config.model.backbone_fields.non_local: found True with backbone 'resnet_tiny'"
    ):
        resnet.build("resnet_tiny", non_local=True)


IMAGES = RNG.standard_normal((3, 2, 2, 3))


@pytest.mark.parametrize("fields", [RECIPE, RECIPE | {"pooling": "mean", "shared_encoder": False}], ids=["gem", "mean"])
def test_retrieval_scores_the_pairs_of_the_grid(x64, fields):
    """The grid, in one go and in blocks; the plain distance of every pair; the stored terms."""
    net, variables = network(jnp.float64, **fields)
    assert set(variables["params"]) >= {"pair_graph", "individual_head"}
    assert ("pair_classifier" in variables["params"]["individual_head"]) == net.pair_stage.shared_encoder
    images = jnp.asarray(IMAGES)
    individual, grid = applied(net, variables, images, train=False)
    f_BBF = np.asarray(grid.conditional.embedding)
    f_BBF = f_BBF / np.linalg.norm(f_BBF, axis=-1, keepdims=True)
    expected = 1 - (f_BBF * f_BBF.swapaxes(0, 1)).sum(axis=-1)
    assert np.std(expected[~np.eye(3, dtype=bool)]) > 1e-4
    for memory in (2e-3, 1e-6):  # a row at a time, a pair at a time
        _, again = applied(with_stage(net, memory_mib=memory), variables, images, train=False)
        np.testing.assert_allclose(again.conditional.logits, grid.conditional.logits, rtol=1e-12)
    maps = applied(net, variables, images, train=False, method="maps")
    constants = compose(net, variables)
    embedding, terms = describe(net, variables, constants, maps, jnp.float64)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    group = lambda one, others: distances(net, constants, one, others)
    np.testing.assert_allclose([group(take(terms, i), terms) for i in range(3)], expected, rtol=1e-9, atol=1e-12)
    f_BF = np.asarray(individual.embedding)
    np.testing.assert_allclose(embedding, f_BF / np.linalg.norm(f_BF, axis=1, keepdims=True), rtol=1e-9)
    rounded: BottleneckTerms = describe(net, variables, constants, maps, jnp.bfloat16)[1]
    assert rounded.nodes_ND.dtype == rounded.intra_NN.dtype == jnp.bfloat16 and rounded.degree_N.dtype == jnp.float64
    np.testing.assert_allclose(group(take(rounded, 0), rounded), expected[0], atol=0.02)


def test_memory_of_the_grid_follows_its_budget():
    """Temporaries of value and gradient, as the compiler counts them, against those of all pairs at once."""
    images, nodes, channels, inside = 12, 16, 512, 32
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    maps, square = shape(images, nodes, channels), shape(images, nodes, nodes)
    low = shape(images, nodes, inside)
    terms = BottleneckTerms(maps, low, low, square, shape(images, nodes))
    encoder = Encoder(shape(inside, channels), shape(1), shape(channels, 8))

    def temporaries(mib):
        loss = lambda *given: (encoded_grid(*given, mib * 2**20).encoded ** 2).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(encoder, terms).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    own = sum(x.size * 4 for x in jax.tree.leaves((encoder, terms))) / 2**20
    small, whole = temporaries(2), temporaries(1024)
    assert small < 2 + 2 * own < whole / 2, (small, own, whole)
