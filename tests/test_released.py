"""The released recipe in training: devices, dropout, losses; and the fields that go together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_same_float64, on_devices, on_one, start
from tiny_retrieval import module
from tiny_training import tiny_config

from cacenet_jax import experiment, losses
from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.models.heads import Embedded, EmbeddingHead
from cacenet_jax.reproduce.variants import apply, changes
from cacenet_jax.run.choices import override, to_dict
from cacenet_jax.run.records import differences
from cacenet_jax.run.validation import validate
from cacenet_jax.train_step import LossWeights, loss_terms

RECIPE = {"pair_stage": "released", "pooling": "gem", "relu": True, "dropout": 0.5}


@pytest.mark.parametrize("memory", [1024.0, 5e-4], ids=["at once", "in blocks"])
def test_devices_agree_with_dropout(x64, memory):
    """The masks follow the place of an image in the global batch; the grid's columns come from other devices."""
    config = tiny_config("float64", **RECIPE, pair_memory_mib=memory)
    config.loss.label_smoothing = 0.1
    before, expected = start(config, "float64", True), on_one(config, "float64")
    assert_same_float64(on_devices(config, "pmap", 4, "float64"), expected, before)


def test_dropout_is_drawn_anew_for_each_step_and_half_is_kept_on_average():
    head = EmbeddingHead(400, 3, relu=True, dropout=0.5)
    encoded = jnp.asarray(np.random.default_rng(0).standard_normal((6, 400)), jnp.float32)
    variables = jax.tree.map(lambda x: x + 0.5, head.init(jax.random.key(0), encoded, train=False, method="finish"))
    variables["params"]["classifier"]["kernel"] = jnp.eye(400, 3)  # the first three of what the classifier sees

    def seen(key, train=True):
        rngs = {"dropout": jax.random.key(key)} if train else {}
        out, _ = head.apply(variables, encoded, train=train, method="finish", rngs=rngs, mutable=["batch_stats"])
        return np.asarray(out.logits), np.maximum(np.asarray(out.embedding)[:, :3], 0)

    (first, full), (again, _), (other, _) = seen(1), seen(1), seen(2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    positive = full > 0
    assert set(np.unique(np.round(first[positive] / full[positive], 5))) == {0.0, 2.0}
    np.testing.assert_allclose(*seen(1, train=False), rtol=1e-5)


def test_label_smoothing_is_the_cross_entropy_with_a_softened_target(x64):
    logits, labels = np.random.default_rng(0).standard_normal((4, 7)), [3, 0, 6, 3]
    for row, label, found in zip(logits, labels, losses.cross_entropy(logits, np.array(labels), 0.1), strict=True):
        log_p = row - np.log(np.exp(row).sum())
        target = [0.9 * (i == label) + 0.1 / 7 for i in range(7)]
        np.testing.assert_allclose(found, -sum(t * p for t, p in zip(target, log_p, strict=True)), rtol=1e-12)


def test_triplet_of_a_relu_does_not_see_what_is_negative(x64):
    rng = np.random.default_rng(0)
    embedding, labels = rng.standard_normal((4, 6)), jnp.asarray([0, 0, 1, 1])
    moved = np.where(embedding < 0, embedding - rng.uniform(0, 1, (4, 6)), embedding)

    def triplet(embedding, relu):
        net = module(stage=None, relu=relu)
        individual = Embedded(jnp.asarray(embedding), jnp.zeros((4, 2)))
        return loss_terms(net, individual, None, labels, jnp.arange(4), LossWeights())["triplet"]

    assert triplet(embedding, True) == triplet(moved, True) == triplet(np.maximum(embedding, 0), False)
    assert triplet(embedding, False) != triplet(moved, False)


def test_pair_triplet_of_a_relu_does_not_see_what_is_negative(x64):
    rng = np.random.default_rng(0)
    embedding, labels = rng.standard_normal((4, 4, 6)), jnp.asarray([0, 0, 1, 1])
    moved = np.where(embedding < 0, embedding - rng.uniform(0, 1, (4, 4, 6)), embedding)

    def triplet(embedding, relu):
        stage = module(stage="released", relu=relu).pair_stage
        conditional = Embedded(jnp.asarray(embedding), jnp.zeros((4, 4, 2)))
        of = losses.GridLabels(labels, labels, jnp.arange(4))
        return stage.embedding_losses(conditional, of, LossWeights())["pair_triplet"].loss_R.mean()

    assert triplet(embedding, True) == triplet(moved, True) == triplet(np.maximum(embedding, 0), False)
    assert triplet(embedding, False) != triplet(moved, False)


def test_recipe_is_the_paper_but_for_the_network_and_the_losses():
    """What the authors' configuration file shares with section 4.2 stays the paper's."""
    released = apply(paper(), "released")
    changed = {line.split(":")[0] for line in differences(to_dict(paper()), to_dict(released))}
    assert changed == set(changes("released"))
    assert all(field.startswith(("model.", "loss.")) for field in changed)
    net, plain = (experiment.read(config).network.build(3) for config in (released, paper()))
    assert net.relu and net.pair_stage.relu and not plain.relu and not plain.pair_stage.relu
    assert net.backbone.non_local and net.pair_stage.shares_encoder and net.pooling == "gem"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "pair.alignment",
            "part",
            r"config.model.pair.alignment: .*'released' has no field alignment, expected .*shared",
        ),
        ("pair.clue_weight", 0.5, r"config.model.pair.clue_weight: .*no field clue_weight"),
        (
            "pair_stage",
            "attention",
            r"config.model.pair_stage: found 'attention', expected one of conditional, ",
        ),
        ("dropout", 1.0, r"config.model.dropout: found 1.0, expected 0 or more and less than 1"),
        ("pooling", "max", r"config.model.pooling: found 'max', expected one of mean, gem"),
    ],
)
def test_impossible_fields_are_refused(field, value, message):
    config = apply(paper(), "released")
    validate(config)
    with pytest.raises(UserError, match=message):
        validate(override(config, {f"model.{field}": value}))
    validate(override(config, {"model.pair_stage": "none"}))  # the baseline of the recipe
