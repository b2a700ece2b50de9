"""The training step: what the loss is made of, that it learns, that it has no NaN, that it lowers for accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import batch_hard, cross_entropy, mixup
from tiny_training import LABELS, batch_of, network, state_of, step_of, tiny_config

from cacenet_jax import experiment
from cacenet_jax.data.augment import Augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.device_map import AXIS, DeviceMap, pick_devices
from cacenet_jax.train_step import create_state, make_train_step

TERMS = ("identity", "triplet", "pair_identity", "pair_triplet")


def unit(x):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def norm(x):
    return np.sqrt((x**2).sum())


@pytest.mark.parametrize("clue_weight", [0.0, 0.3])
def test_loss_terms_equal_the_loops_over_the_batch(x64, clue_weight):
    """Each term from the network's own outputs, weighted, and their sum; the gradient's norm and the accuracy."""
    config = tiny_config("float64", pair={"clue_weight": clue_weight})
    config.loss.update({"identity": 0.5, "triplet": 2.0, "pair_identity": 3.0, "pair_triplet": 1.5, "alpha": 0.7})
    net, batch = network(config, one_block=True), batch_of("float64")
    state = state_of(net, optax.sgd(1.0), "float64")
    after, metrics = jax.jit(step_of(config, one_block=True))(state, batch)
    forward = jax.jit(lambda variables, images: net.apply(variables, images, train=True, mutable=["batch_stats"]))
    (individual, grid), updates = forward({"params": state.params, "batch_stats": state.batch_stats}, batch.images)
    embedding, target = unit(np.asarray(individual.embedding)), unit(np.asarray(grid.conditional.embedding))
    near = np.array([[norm(a - b) for b in embedding] for a in embedding])
    pair = np.array([[norm(target[u, v] - target[v, u]) for v in range(8)] for u in range(8)])
    if clue_weight:
        pair = np.sqrt((1 - clue_weight) * pair**2 + 2 * clue_weight * np.asarray(grid.clues))
    expected = {
        "identity": 0.5 * np.mean([cross_entropy(x, y) for x, y in zip(individual.logits, LABELS, strict=True)]),
        "triplet": 2.0 * batch_hard(near, LABELS, 0.5),
        "pair_identity": 3.0 * mixup(np.asarray(grid.conditional.logits), LABELS, 0.7),
        "pair_triplet": 1.5 * batch_hard(pair, LABELS, 0.5),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], sum(expected.values()), rtol=1e-9)
    np.testing.assert_allclose(metrics["accuracy"], (np.asarray(individual.logits).argmax(axis=1) == LABELS).mean())
    moved = jax.tree.leaves(jax.tree.map(np.subtract, after.params, state.params))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(sum((x**2).sum() for x in moved)), rtol=1e-9)
    assert after.step == 1
    for have, want in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(updates["batch_stats"]), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_step_equals_finite_differences(x64):
    config = tiny_config("float64")
    state = state_of(network(config, one_block=True), optax.sgd(1.0), "float64")
    step, batch = jax.jit(step_of(config, one_block=True)), batch_of("float64")
    gradient = jax.tree.map(np.subtract, state.params, step(state, batch)[0].params)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), state.params)

    def loss_at(size):
        moved = jax.tree.map(lambda p, d: p + size * d, state.params, direction)
        return float(step(state.replace(params=moved), batch)[1]["loss"])

    slope = sum((g * d).sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "fields", [{}, {"pair": {"keys": "standardised", "filters": "untied"}}], ids=["paper", "standardised"]
)
def test_training_learns_eight_images_by_heart(fields):
    config = tiny_config(**fields)
    config.epochs, config.optim.warmup_epochs, config.optim.learning_rate = 60, 2.0, 0.1
    optimizer = experiment.read(config).optimizer(steps_per_epoch=1)
    state = state_of(network(config, one_block=True), optimizer)
    step, history = jax.jit(step_of(config, optimizer, one_block=True)), []
    for _ in range(60):
        state, metrics = step(state, batch_of())
        history.append(jax.device_get(metrics))
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    for name in TERMS:
        assert history[-1][name] < 0.8 * history[0][name], name
    assert history[-1]["loss"] < 0.5 * history[0]["loss"] and history[-1]["accuracy"] == 1


@pytest.mark.parametrize(("keys", "dtype"), [("raw", "float32"), ("l2", "float32"), ("standardised", "bfloat16")])
def test_no_nan_with_duplicate_images_and_dead_attention(keys, dtype):
    """Copies of an image under one and under two identities, black images, and a graph without any edge."""
    config = tiny_config(dtype, pair={"keys": keys})
    state = state_of(network(config, one_block=True), optax.sgd(1.0))
    step, batch = jax.jit(step_of(config, one_block=True)), batch_of(duplicates=True)
    batch.images[6:] = 0
    for sign in (1, -1):
        params = {k: sign * abs(v) if k.endswith("_weight") else v for k, v in state.params.items()}
        after, metrics = step(state.replace(params=params), batch)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.params, after.batch_stats, metrics)))
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((after.params, after.batch_stats)))
        if sign == -1 and keys == "raw":
            assert metrics["positive_cross"] == metrics["degree"] == 0


def test_the_same_step_draws_the_same_augmentation_and_the_next_another():
    config = tiny_config(pair_stage="none")
    pixels = batch_of()._replace(images=np.random.default_rng(0).integers(0, 256, (8, 32, 16, 3), np.uint8))
    state = state_of(network(config, one_block=True), optax.sgd(1.0))
    step = jax.jit(step_of(config, one_block=True, augmentation=Augment(pad=2)))
    losses = [float(step(state.replace(step=np.int32(i)), pixels)[1]["loss"]) for i in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("platform", "mode"), [("tpu", "shard_map"), ("cuda", "jit")])
def test_training_step_lowers_for_accelerators(platform, mode):
    """Forms that are chosen for a CPU are switched off, as they are where the step will run."""
    config = tiny_config("bfloat16")
    axis_name = AXIS if mode == "shard_map" else None
    settings = experiment.read(config)
    net = settings.network.build(4, axis_name)
    net = net.clone(backbone=net.backbone.clone(matmul_1x1=False, cpu_stem=False))
    optimizer = settings.optimizer(10)
    state = state_of(net, optimizer)
    step = make_train_step(net, optimizer, settings.loss, settings.augmentation(), jax.random.key(0), axis_name)
    batch = batch_of()._replace(images=np.zeros((8, 32, 16, 3), np.uint8))
    mapped = jax.jit(step) if mode == "jit" else DeviceMap(pick_devices(8), mode).map(step)
    exported = jax.export.export(mapped, platforms=[platform])(state, batch)
    assert exported.platforms == (platform,)
    assert exported.nr_devices == (8 if mode == "shard_map" else 1)
    assert ("all_gather" in exported.mlir_module()) == (mode == "shard_map")


@pytest.mark.parametrize(
    "model",
    [
        {"pair_stage": "evidence", "pair": {"features": 4}},
        {"pair_stage": "evidence", "pair": {"features": 4}, "frozen": True},
        {"pair_stage": "keypoints"},
        {"pair": {"alignment": "similarity", "neighbours": 9}},
        {"pair": {"alignment": "semantic"}},
        {"pair": {"alignment": "individual"}},
        {"pair_stage": "released", "pooling": "gem", "dropout": 0.5},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_every_pair_stage_lowers_for_accelerators(model):
    config = tiny_config("bfloat16", **model)
    settings, size = experiment.read(config), (48, 16)
    net, optimizer = network(config, one_block=True), settings.optimizer(10)
    state = jax.eval_shape(lambda: create_state(net, optimizer, jax.random.key(0), size))
    batch = Batch(*(jax.ShapeDtypeStruct(*of) for of in (((8, *size, net.image_channels), np.uint8), ((8,), np.int32))))
    step = make_train_step(net, optimizer, settings.loss, settings.augmentation(), jax.random.key(0))
    exported = jax.export.export(jax.jit(step), platforms=["cuda", "tpu"])(state, batch)
    assert exported.platforms == ("cuda", "tpu")
    # Of 12 positions; up to 8 neighbours go without it.
    assert ("top_k" in exported.mlir_module()) == ("neighbours" in model.get("pair", {}))
