"""The whole network against its parts done by hand: pair grid, keys, pair distance, what retrieval keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affinity, full_graph, literal_clues, pair_maps
from tiny_retrieval import D, F, I, Pixels, applied, compose, describe, distances, module

from cacenet_jax.errors import UserError
from cacenet_jax.models.pair_stages.conditional.head import ConditionalHead


def network(**fields):
    net = module(**fields)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 3)))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(1)
    return net, jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape)), variables), images


def keys_by_hand(keys, nodes_BND, variables, train):
    if keys == "raw":
        return nodes_BND
    if keys == "l2":
        return np.stack([[D**0.5 * row / np.sqrt((row**2).sum()) for row in nodes] for nodes in nodes_BND])
    rows = nodes_BND.reshape(-1, D)
    stats = variables["batch_stats"]["key_norm"]
    mean, var = (rows.mean(axis=0), rows.var(axis=0)) if train else (stats["mean"], stats["var"])
    standardised = (nodes_BND - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-5)
    if keys == "standardised":
        return standardised
    correlated = np.stack([[D**0.5 * row / np.sqrt((row**2).sum()) for row in nodes] for nodes in standardised])
    return np.concatenate([correlated, np.ones((*correlated.shape[:2], 1))], axis=2)


def weight_by_hand(name, keys, variables):
    """The diagonal of W or W'; the threshold of "correlation" is one more channel."""
    params = variables["params"]
    weight = np.asarray(params[f"{name}_weight"]) / D
    return np.append(weight, -params[f"{name}_threshold"]) if keys == "correlation" else weight


def pooled_by_hand(nodes_BND, keys_BND, intra, cross):
    """Mean over u of R A R X for every pair; affinities from the keys, the nodes are moved."""
    count, num = nodes_BND.shape[:2]
    grid = np.zeros((count, count, D))
    for u in range(count):
        for v in range(count):
            graph = full_graph(keys_BND[u], keys_BND[v], intra, cross)
            degree = graph.sum(axis=1)
            root = np.array([d**-0.5 if d > 0 else 0.0 for d in degree])
            nodes = np.concatenate([nodes_BND[u], nodes_BND[v]])
            grid[u, v] = (root[:, None] * graph * root @ nodes)[:num].mean(axis=0)
    return grid


@pytest.mark.parametrize("memory", [1024.0, 4500 / 2**20], ids=["at once", "row by row"])
@pytest.mark.parametrize("keys", ["raw", "l2", "standardised", "correlation"])
def test_grid_equals_the_loop_over_pairs(x64, keys, memory):
    net, variables, images = network(keys=keys, memory_mib=memory)
    (_, grid), _ = applied(net, variables, images, train=True, mutable=["batch_stats"])
    nodes = np.asarray(Pixels()(images, train=True)).reshape(3, 4, D)
    used = keys_by_hand(keys, nodes, variables, train=True)
    intra, cross = (weight_by_hand(name, keys, variables) for name in ("intra", "cross"))
    near = pooled_by_hand(nodes, used, intra, cross)
    inner = {name: tree["conditional_head"] for name, tree in variables.items()}
    head = ConditionalHead(D, F, I, dtype=jnp.float64)
    own = jnp.asarray(nodes.mean(axis=1)[:, None])
    expected, _ = applied(head, inner, own, jnp.asarray(near), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(grid.conditional.embedding, expected.embedding, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(grid.conditional.logits, expected.logits, rtol=1e-7, atol=1e-8)
    positive_intra = np.mean([affinity(x, x, intra) > 0 for x in used])
    positive_cross = np.mean([affinity(a, b, cross) > 0 for a in used for b in used])
    degree = np.mean([full_graph(a, b, intra, cross).sum(axis=1)[:4] for a in used for b in used])
    np.testing.assert_allclose(
        [grid.positive_intra, grid.positive_cross, grid.degree],
        [positive_intra, positive_cross, degree],
        rtol=1e-6,
    )


@pytest.mark.parametrize("kind", ["discrepancy", "normal"])
def test_conditional_embedding_equals_the_encoded_mean_of_the_conditional_map(x64, kind):
    """Equations 2-7 from end to end, Theta included: encoder(mean over u of Y)."""
    net, variables, images = network(kind=kind)
    _, grid = applied(net, variables, images, train=False)
    nodes = np.asarray(Pixels()(images, train=True)).reshape(3, 4, D)
    params = variables["params"]
    theta, head = params["conditional_head"]["theta"], params["conditional_head"]["head"]
    stats = variables["batch_stats"]["conditional_head"]["head"]["bn"]
    intra, cross = np.asarray(params["intra_weight"]) / D, np.asarray(params["cross_weight"]) / D
    for u in range(3):
        for v in range(3):
            maps_u, maps_v = pair_maps(nodes[u], nodes[v], intra, cross, theta, kind)
            for place, maps in (((u, v), maps_u), ((v, u), maps_v)):
                encoded = maps.mean(axis=0) @ head["conv"]["kernel"]
                normed = (encoded - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
                expected = normed * head["bn"]["scale"] + head["bn"]["bias"]
                np.testing.assert_allclose(grid.conditional.embedding[place], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("train", [True, False])
def test_clues_of_the_grid_are_regions_embedded_by_the_individual_head(x64, train):
    """With the head's running statistics, in training too; their mean is f(I)."""
    net, variables, images = network(clue_weight=0.5)
    (individual, grid), after = applied(net, variables, images, train=train, mutable=["batch_stats"])
    head, stats = variables["params"]["individual_head"], after["batch_stats"]["individual_head"]["bn"]
    nodes = np.asarray(Pixels()(images, train=True)).reshape(3, 4, D)
    encoded = nodes @ np.asarray(head["conv"]["kernel"])
    normed = (encoded - np.asarray(stats["mean"])) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    regions = normed * np.asarray(head["bn"]["scale"]) + np.asarray(head["bn"]["bias"])
    expected = [[literal_clues(u, v) for v in regions] for u in regions]
    np.testing.assert_allclose(grid.clues, expected, rtol=1e-8, atol=1e-3)
    if not train:
        np.testing.assert_allclose(regions.mean(axis=1), individual.embedding, rtol=1e-9)


@pytest.mark.parametrize("fields", [{}, {"keys": "standardised"}, {"keys": "correlation", "clue_weight": 0.3}])
def test_pair_distance_is_that_of_the_grid(x64, fields):
    net, variables, images = network(**fields)
    share = fields.get("clue_weight", 0)
    _, grid = applied(net, variables, images, train=False)
    maps = applied(net, variables, images, train=False, method="maps")
    constants = compose(net, variables)
    individual, terms = describe(net, variables, constants, maps, jnp.float64)
    embedding = np.asarray(grid.conditional.embedding)
    for u in range(3):
        for v in range(3):
            found = distances(net, constants, jax.tree.map(lambda x: x[u], terms), terms)[v]  # noqa: B023
            a, b = embedding[u, v], embedding[v, u]
            expected = (1 - share) * (1 - a @ b / np.sqrt((a @ a) * (b @ b)))
            if share:
                expected += share * grid.clues[u, v]
            np.testing.assert_allclose(found, expected, atol=1e-10 if u != v else 1e-3)
    np.testing.assert_allclose((np.asarray(individual) ** 2).sum(axis=1), 1, rtol=1e-12)


def test_without_the_pair_stage_nothing_of_it_exists(x64):
    net, variables, images = network(stage=None)
    individual, grid = applied(net, variables, images, train=False)
    assert grid is None and set(variables["params"]) == {"individual_head"}
    pooled = np.asarray(Pixels()(images, train=False)).mean(axis=(1, 2))
    head, stats = variables["params"]["individual_head"], variables["batch_stats"]["individual_head"]["bn"]
    normed = (pooled @ head["conv"]["kernel"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(individual.embedding, normed * head["bn"]["scale"] + head["bn"]["bias"], rtol=1e-9)
    maps = applied(net, variables, images, train=False, method="maps")
    assert applied(net, variables, maps, method="describe").terms is None


@pytest.mark.parametrize("keys", ["raw", "l2", "standardised", "correlation"])
def test_bfloat16_network_gives_float32_close_to_float32(keys):
    exact, variables, images = network(keys=keys, dtype=jnp.float32)
    rounded = exact.astype(jnp.bfloat16)
    forward = lambda net, x: applied(net, variables, x, train=False)
    (want, want_grid), (have, have_grid) = (
        forward(exact, images),
        forward(rounded, images.astype(jnp.bfloat16)),
    )
    for a, b in zip((*have, *have_grid.conditional), (*want, *want_grid.conditional), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("keys", ["raw", "l2", "standardised"])
def test_no_nan_for_identical_or_black_images(keys):
    net, variables, images = network(keys=keys, dtype=jnp.float32)
    images = jnp.stack([images[0], images[0], jnp.zeros_like(images[0])])

    def objective(params, images):
        (individual, grid), _ = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return individual.logits.sum() + (grid.conditional.embedding**2).sum() + grid.conditional.logits.sum()

    value, grads = jax.jit(jax.value_and_grad(objective, (0, 1)))(variables["params"], images)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "gem"}, "config.model.pooling: found 'gem', expected mean with ConditionalStage; change it or"),
        ({"stage": "released", "frozen": True}, "config.model.frozen: found True, expected False with ReleasedStage"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        module(**fields).validate()


def test_parts_that_go_together_are_taken():
    for stage, pooling, frozen in [
        ("conditional", "mean", True),
        ("released", "gem", False),
        ("keypoints", "gem", True),
        ("evidence", "gem", True),
        (None, "gem", False),
    ]:
        module(stage=stage, pooling=pooling, frozen=frozen).validate()
