"""Dead parts of a network are named, once and with the step; a healthy one raises no alarm."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training
from command import TINY

from cacenet_jax import train
from cacenet_jax.models.pair_stages import Alarm, PairStage
from cacenet_jax.run import alarms
from cacenet_jax.train_step import count_dead

EVIDENCE = {"pair_stage": "evidence", "pair": {"features": 4}}
RELEASED = {"pair_stage": "released", "pooling": "gem"}


class Silent(PairStage):
    """A stage from outside the package, whose only diagnostic is dead."""

    def terms(self, nodes_BND, parts_BN, individual, *, train):
        return nodes_BND.mean(axis=1)

    def distance(self, constants, u, v):
        return ((u - v) ** 2).sum()

    def diagnostics(self, grid):
        return {"voices": jnp.zeros(())}

    @property
    def alarms(self):
        return (Alarm("voices", "nobody speaks", "speak up"),)


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the watch, as lines."""
    lines = []
    note = lambda text, *words: lines.append(text % words) if text.startswith("step ") else None  # others log here too
    monkeypatch.setattr(alarms.logging, "warning", note)
    return lines


def steps(model, change=lambda path, x: x, count=2):
    """Train eight images with parameters that are changed beforehand, as the loop does."""
    config = tiny_training.tiny_config(**model)
    net = tiny_training.network(config, one_block=True)
    state = tiny_training.state_of(net, optax.sgd(1e-3))
    name = lambda path: "/".join(key.key for key in path)
    params = jax.tree_util.tree_map_with_path(lambda path, x: np.asarray(change(name(path), x)), state.params)
    state, step = state.replace(params=params), jax.jit(tiny_training.step_of(config, optax.sgd(1e-3), one_block=True))
    watch = alarms.Watch(net.alarms)
    for number in range(1, count + 1):
        state, metrics = step(state, tiny_training.batch_of())
        metrics = {key: float(value) for key, value in metrics.items()}
        train.check_finite(number, metrics)
        watch.check(number, metrics, lambda: state.params)  # noqa: B023
    return metrics


def zero(*names):
    return lambda path, x: 0 * x if path in names else x


def negative(path, x):
    return -abs(x) if path.endswith("_weight") else x


@pytest.mark.parametrize(
    "model",
    [{}, {"pair": {"alignment": "none"}}, {"pair_stage": "keypoints"}, RELEASED, EVIDENCE, {"pair_stage": "none"},
     *(pytest.param(model, marks=pytest.mark.slow)
       for model in ({"pair": {"keys": "correlation"}}, {"pair": {"alignment": "individual"}}, {**RELEASED, "relu": True},
                     {**EVIDENCE, "frozen": True}))],
    ids=lambda model: "-".join(map(str, model.values())) or "paper",
)  # fmt: skip
def test_a_healthy_network_raises_no_alarm(model, warned):
    metrics = steps(model, count=3)
    assert not warned
    assert metrics["embedding_spread"] > 0.1 and metrics.get("dead_weights", 0) == 0


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        ({}, negative, ["positive_intra is 0: no two positions", "positive_cross is 0: no position", "degree is 0: every"]),
        ({"pair_stage": "keypoints"}, negative, ["positive_cross is 0: no position"]),
        ({"pair": {"alignment": "individual"}}, negative, ["positive_intra is 0", "degree is 0"]),
        ({}, zero("cross_weight"), ["positive_cross is 0", "1 weight(s) of the pair stage are all zero (cross_weight)"]),
        ({}, zero("conditional_head/head/conv/kernel"), ["pair_spread is"]),
        (RELEASED, zero("pair_graph/y/kernel"),
         ["positive_intra is 0", "positive_cross is 0", "degree is 0", "pair_graph/y/kernel"]),
        (EVIDENCE, zero("local_evidence/judge_out"), ["evidence_spread is 0: all pairs have the same evidence"]),
        (EVIDENCE, zero("local_evidence/judge_kernel", "local_evidence/judge_bias"),
         ["evidence_spread is 0", "local_evidence/judge_kernel"]),
        ({"pair_stage": "none"}, zero("individual_head/conv/kernel"), ["embedding_spread is 0: all images of the batch"]),
        ({"pair_stage": f"{__name__}:Silent"}, lambda path, x: x,
         ["voices is 0: nobody speaks; if it stays so in metrics.jsonl, speak up"]),
    ],
    ids=["paper", "keypoints", "individual", "weight", "encoder", "released", "judge_out", "judge", "embeddings", "own"],
)  # fmt: skip
def test_a_dead_part_is_named_once_with_the_step(model, change, named, warned):
    steps(model, change)
    assert len(warned) == len(named), warned
    for text in named:
        assert sum(line.startswith("step 1: ") and text in line for line in warned) == 1, (text, warned)


def test_an_embedding_that_no_relu_lets_through_is_constant(warned):
    """Negative everywhere, so that the ReLU before the classifier leaves zeros."""
    change = lambda path, x: x - 100 if path == "individual_head/bn/bias" else x
    steps({"pair_stage": "none", "relu": True}, change)
    assert len(warned) == 1 and "embedding_spread is 0" in warned[0]


@pytest.mark.parametrize(
    ("before", "after", "grad", "count"),
    [(1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 1, 0), (1, 1, 0, 0)],
    ids=["collapsed", "dead from the start", "starts at zero", "learns", "without a gradient"],
)
def test_a_zero_weight_is_dead_unless_it_is_about_to_learn(before, after, grad, count):
    tree = lambda value: {
        "weight": jnp.full(3, value), "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}, "scalar": jnp.zeros(()),
        "backbone": {"kernel": jnp.zeros((2, 2))},
    }  # fmt: skip
    assert count_dead(tree(before), tree(after), tree(grad)) == count


@pytest.mark.slow
def test_training_tells_it(tmp_path, tmp_path_factory, monkeypatch, warned):
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.dir, config.epochs = str(tmp_path_factory.getbasetemp() / "prepared"), 2
    create = train.create_state

    def dead(*words):
        state = create(*words)
        weights = {name: -x for name, x in state.params.items() if name.endswith("_weight")}
        assert len(weights) == 2
        return dataclasses.replace(state, params={**state.params, **weights})

    monkeypatch.setattr(train, "create_state", dead)
    train.train(config, tmp_path / "run")
    assert [line.split(" is ")[0] for line in warned] == [
        f"step 1: {name}" for name in ("positive_intra", "positive_cross", "degree")
    ]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["positive_cross"] == 0 and row["embedding_spread"] > 0.1 for row in rows if "loss" in row)
