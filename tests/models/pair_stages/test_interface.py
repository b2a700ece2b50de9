"""The interface of pair stages: the choice of a stage and its fields, and all that a stage of two methods inherits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_retrieval
import tiny_training
from flax import linen as nn
from oracles import batch_hard
from tiny_retrieval import applied, compose, describe, distances, terms_of, with_stage

from cacenet_jax.errors import UserError
from cacenet_jax.models import pair_stages
from cacenet_jax.models.pair_stages import PairStage


class MeanColours(PairStage, kw_only=True):
    """The least that a stage must define: squared difference of weighted means."""

    power: float = 2.0

    def validate(self):
        if self.power < 1:
            raise UserError(f"config.model.pair.power: found {self.power}, expected 1 or more; raise it")

    def setup(self):
        self.colour_weight = self.param("colour_weight", nn.initializers.ones, (self.channels,))

    def terms(self, nodes_BND, parts_BN, individual, *, train):
        return {"mean": nodes_BND.mean(axis=1) * self.colour_weight, "count": jnp.ones(len(nodes_BND), jnp.int32)}

    def distance(self, constants, u, v):
        return (abs(u["mean"] - v["mean"]) ** self.power).sum()


class ManyAtOnce(MeanColours, kw_only=True):
    """The same with `distances` in place of `distance`."""

    distance = PairStage.distance

    def distances(self, constants, u, v):
        return (abs(u["mean"] - v["mean"]) ** self.power).sum(axis=1)


STAGE = f"{__name__}:MeanColours"


# -- The choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("keypoint", {}, "config.model.pair_stage: found 'keypoint', expected one of conditional, .*, or MODULE:CLASS"),
        ("evidence", {"channel": 4}, r"'evidence' has no field channel, expected one of its fields \(features\)"),
        ("keypoints", {"kind": "normal"}, r"has no field kind, expected one of its fields \(keys, threshold\)"),
        ("evidence", {"features": 0}, "config.model.pair.features: found 0"),
        ("conditional", {"neighbours": 0}, "config.model.pair.neighbours: found 0, expected 1 or more"),
        ("conditional", {"clue_weight": 1.5}, "config.model.pair.clue_weight: found 1.5, expected a value from 0 to 1"),
        ("conditional", {"alignment": "odd"}, "config.model.pair.alignment: found 'odd', expected one of attention"),
        ("conditional", {"embedding_distance": "l3"}, "config.model.pair.embedding_distance: found 'l3'"),
        ("released", {"embedding_distance": "l3"}, "config.model.pair.embedding_distance: found 'l3'"),
        (STAGE, {"power": 0.5}, "config.model.pair.power: found 0.5, expected 1 or more"),
        (STAGE, {"keys": "raw"}, r"has no field keys, expected one of its fields \(power\)"),
    ],
)
def test_a_stage_or_a_field_that_cannot_be_is_one_line(name, given, message):
    with pytest.raises(UserError, match=message) as error:
        pair_stages.check(name, given)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        pair_stages.build(name, **{"channels": 4, "embed_dim": 3, "num_identities": 2, **given})


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        (
            "keypoints",
            "keys",
            "config.model.pair.keys: found 'odd', expected one of raw, l2, standardised, correlation",
        ),
        (
            "conditional",
            "keys",
            "config.model.pair.keys: found 'odd', expected one of raw, l2, standardised, correlation",
        ),
        ("conditional", "kind", "config.model.pair.kind: found 'odd', expected one of discrepancy, normal"),
        ("conditional", "filters", "config.model.pair.filters: found 'odd', expected one of tied, untied"),
    ],
)
def test_a_value_that_is_no_choice_is_one_line(name, field, message):
    stage = pair_stages.build(name, channels=4, embed_dim=3, num_identities=2)
    object.__setattr__(stage, field, "odd")  # the tests' type checker refuses it in a call
    with pytest.raises(UserError, match=message):
        stage.validate()


def test_fields_that_every_stage_has_are_not_among_its_own():
    with pytest.raises(UserError, match=r"has no field memory_mib, expected one of its fields \(keys, threshold\)"):
        pair_stages.check("keypoints", {"memory_mib": 4.0})


def test_fields_of_a_stage_are_its_own_with_their_defaults():
    assert pair_stages.fields(STAGE) == {"power": 2.0}
    assert pair_stages.fields("evidence") == {"features": 64}
    for name in ("conditional", "released", "keypoints", "evidence"):
        pair_stages.check(name, pair_stages.fields(name))


# -- What a stage of two methods inherits -------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_a_stage_of_two_methods_trains():
    """One step: the triplet loss of its distances, whose gradient reaches its parameter."""
    config = tiny_training.tiny_config("float64", pair_stage=STAGE)
    net, batch = tiny_training.network(config, one_block=True), tiny_training.batch_of("float64")
    state = tiny_training.state_of(net, optax.sgd(1.0), "float64")
    after, metrics = jax.jit(tiny_training.step_of(config, one_block=True))(state, batch)
    losses, health = ("loss", "identity", "triplet", "pair_triplet"), ("accuracy", "embedding_spread", "dead_weights")
    assert set(metrics) == {*losses, *health, "grad_norm", "param_norm"}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    maps, _ = applied(net, variables, batch.images, train=True, mutable=["batch_stats"], method="maps")
    means = np.asarray(maps).reshape(8, -1, maps.shape[-1]).mean(axis=1) * state.params["colour_weight"]
    pair = np.array([[((u - v) ** 2).sum() for v in means] for u in means])
    np.testing.assert_allclose(metrics["pair_triplet"], batch_hard(pair, tiny_training.LABELS, 0.5), rtol=1e-9)
    terms = [metrics[name] for name in ("identity", "triplet", "pair_triplet")]
    np.testing.assert_allclose(metrics["loss"], sum(terms), rtol=1e-12)
    assert (after.params["colour_weight"] != state.params["colour_weight"]).any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["MeanColours", "ManyAtOnce"])
def test_a_stage_of_two_methods_scores_and_shows_pairs(kind):
    net, variables = tiny_retrieval.network(stage=f"{__name__}:{kind}", power=3.0)
    images = jnp.asarray(np.random.default_rng(3).standard_normal((3, 4, 2, 3)))
    maps = applied(net, variables, images, train=False, method="maps")
    nodes = np.asarray(maps).reshape(3, 8, -1)
    means = nodes.mean(axis=1) * np.asarray(variables["params"]["colour_weight"])
    expected = np.array([[(abs(u - v) ** 3).sum() for v in means] for u in means])

    for memory in (1024.0, 1e-6):  # at once, a column at a time
        _, grid = applied(with_stage(net, memory_mib=memory), variables, images, train=False)
        np.testing.assert_allclose(grid, expected, rtol=1e-10, atol=1e-12)

    constants = compose(net, variables)
    _, terms = describe(net, variables, constants, maps, jnp.float64)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    found = [distances(net, constants, take(terms, u), terms) for u in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    one = net.pair_stage.distance(constants, take(terms, 0), take(terms, 1))
    np.testing.assert_allclose(one, expected[0, 1], rtol=1e-10)
    rounded = describe(net, variables, constants, maps, jnp.bfloat16)[1]
    assert rounded["mean"].dtype == jnp.bfloat16 and rounded["count"].dtype == jnp.int32

    whole = terms_of(net, variables, maps)
    view = applied(net, variables, take(whole, 0), take(whole, 1), maps[0], maps[1], method="view")
    sizes = np.linalg.norm(nodes, axis=2)
    cosines = np.array([[a @ b for b in nodes[1]] for a in nodes[0]]) / np.outer(sizes[0], sizes[1])
    np.testing.assert_allclose(view.correspondence_NM, np.maximum(cosines, 0), rtol=1e-10, atol=1e-12)
    assert view.norm_N is None
