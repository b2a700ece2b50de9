"""Losses against literal loops (equations 1 and 8, batch-hard triplet)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import batch_hard, cross_entropy, finite_difference, list_loss, mixup

from cacenet_jax import losses

LABELS = {
    "balanced": [0, 0, 1, 1, 2, 2],
    "uneven": [0, 0, 0, 1, 1, 2],
    "no_positive": [0, 1, 2, 3, 4, 5],
    "no_negative": [3, 3, 3, 3, 3, 3],
    "one_valid_pair": [0, 0, 1, 2, 3, 4],
}


def distances(ties=False, count=6):
    distance_BB = np.random.default_rng(0).uniform(0.1, 2, (count, count))
    return np.round(distance_BB) if ties else distance_BB


@pytest.mark.parametrize("label_type", [np.int32, np.int64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_batch_hard_triplet_equals_the_loop(x64, labels, ties, label_type):
    """The distances are not symmetric and the diagonal is not zero: rows are anchors, the diagonal is not read."""
    distance_BB, labels_B = distances(ties), np.asarray(labels, label_type)
    found = losses.batch_hard_triplet(distance_BB, labels_B, 0.5)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, batch_hard(distance_BB, labels, 0.5), rtol=1e-13)


def test_batch_hard_triplet_has_the_gradient_of_the_loop(x64):
    labels, direction = LABELS["uneven"], np.random.default_rng(1).standard_normal((6, 6))
    grad = jax.grad(lambda d: losses.batch_hard_triplet(d, np.asarray(labels), 0.5))(jnp.asarray(distances()))
    expected = finite_difference(lambda d: batch_hard(d, labels, 0.5), distances(), direction)
    np.testing.assert_allclose((grad * direction).sum(), expected, rtol=1e-7)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_triplet_of_identical_embeddings_has_a_finite_gradient(labels):
    def loss(x):
        return losses.batch_hard_triplet(losses.euclidean_grid(x, x), jnp.asarray(labels), 0.3)

    value, grad = jax.value_and_grad(loss)(jnp.ones((6, 4)))
    valid = batch_hard(np.zeros((6, 6)), labels, 0.3)
    np.testing.assert_allclose(value, valid, rtol=1e-6)
    np.testing.assert_array_equal(grad, 0)


def test_rows_of_a_part_of_the_batch_equal_rows_of_the_whole():
    """A device sees some anchors and all images; its anchors' own columns are not the first ones."""
    distance, labels = distances().astype(np.float32), np.asarray(LABELS["uneven"])
    whole = losses.batch_hard_rows(distance, labels, labels, np.arange(6), 0.5)
    part = losses.batch_hard_rows(distance[2:5], labels[2:5], labels, np.arange(2, 5), 0.5)
    np.testing.assert_array_equal(part.loss_R, whole.loss_R[2:5])
    np.testing.assert_array_equal(part.valid_R, whole.valid_R[2:5])


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_list_loss_equals_the_loop_in_value_and_gradient(x64, labels):
    """Scores are not symmetric; rows are anchors, the diagonal is not read."""
    score_BB, labels_B = 3 * distances(), np.asarray(labels)

    def mean(score_BB):
        rows = losses.list_rows(score_BB, labels_B, labels_B, np.arange(6))
        return rows.loss_R.sum() / jnp.maximum(rows.valid_R.sum(), 1)

    np.testing.assert_allclose(mean(score_BB), list_loss(score_BB, labels_B), rtol=1e-12)
    gradient, direction = jax.grad(mean)(jnp.asarray(score_BB)), np.random.default_rng(1).standard_normal((6, 6))
    expected = finite_difference(lambda x: list_loss(x, labels_B), score_BB, direction)
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-9)
    part = losses.list_rows(score_BB[2:5], labels_B[2:5], labels_B, np.arange(2, 5))
    np.testing.assert_allclose(part.loss_R, losses.list_rows(score_BB, labels_B, labels_B, np.arange(6)).loss_R[2:5])


def logits_grid(count=4, identities=3):
    return 3 * np.random.default_rng(2).standard_normal((count, count, identities))


@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.0])
@pytest.mark.parametrize("label_type", [np.int32, np.int64])
def test_mixup_equals_the_double_loop(x64, alpha, label_type):
    labels_B = np.asarray([0, 0, 1, 2], label_type)
    found = losses.mixup_cross_entropy(logits_grid(), labels_B, alpha)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, mixup(logits_grid(), labels_B, alpha), rtol=1e-12)


def test_mixup_has_the_gradient_of_the_double_loop(x64):
    labels, direction = np.asarray([0, 0, 1, 2]), np.random.default_rng(3).standard_normal((4, 4, 3))
    grad = jax.grad(lambda x: losses.mixup_cross_entropy(x, labels, 0.9))(jnp.asarray(logits_grid()))
    expected = finite_difference(lambda x: mixup(x, labels, 0.9), logits_grid(), direction)
    np.testing.assert_allclose((grad * direction).sum(), expected, rtol=1e-7)


def test_mixup_with_alpha_one_is_cross_entropy_on_the_targets(x64):
    labels = np.asarray([0, 0, 1, 2])
    targets = np.broadcast_to(labels[:, None], (4, 4))
    expected = losses.cross_entropy(logits_grid(), targets).mean()
    np.testing.assert_allclose(losses.mixup_cross_entropy(logits_grid(), labels, 1.0), expected, rtol=1e-13)


def test_cross_entropy_equals_the_loop_and_survives_large_logits(x64):
    logits, labels = 1000 * logits_grid()[0], np.asarray([2, 0, 1, 1])
    expected = -(logits[np.arange(4), labels] - logits.max(axis=1))  # the largest logit decides
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-12)
    small = logits / 1000
    want = [cross_entropy(row, label) for row, label in zip(small, labels, strict=True)]
    np.testing.assert_allclose(losses.cross_entropy(small, labels), want, rtol=1e-12)


def test_bfloat16_inputs_give_float32_losses():
    """Softmax and distances are float32 whatever the compute type."""
    labels = np.asarray([0, 0, 1, 2])
    logits = jnp.asarray(logits_grid(), jnp.bfloat16)
    exact = mixup(np.asarray(logits, np.float64), labels, 0.9)
    found = losses.mixup_cross_entropy(logits, labels, 0.9)
    assert found.dtype == losses.cross_entropy(logits[0], labels).dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    distance = jnp.asarray(distances(), jnp.bfloat16)
    triplet = losses.batch_hard_triplet(distance, np.asarray(LABELS["uneven"]), 0.3)
    assert triplet.dtype == jnp.float32
    np.testing.assert_allclose(triplet, batch_hard(np.asarray(distance, np.float64), LABELS["uneven"], 0.3), rtol=1e-5)


def test_euclidean_equals_the_norm_and_its_gradient_is_zero_at_zero(x64):
    left, right = np.random.default_rng(4).standard_normal((2, 5, 3))
    left[2] = right[2]
    expected = [[np.sqrt(((a - b) ** 2).sum()) for b in right] for a in left]
    grid = losses.euclidean_grid(jnp.asarray(left), jnp.asarray(right))
    np.testing.assert_allclose(grid, expected, rtol=1e-13)
    grad = jax.grad(lambda x: losses.euclidean(x, jnp.asarray(right)).sum())(jnp.asarray(left))
    unit = [(a - b) / max(np.sqrt(((a - b) ** 2).sum()), 1e-30) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(grad, unit, rtol=1e-12, atol=1e-15)
