"""Learning rate and optimiser against hand-computed updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cacenet_jax import optim
from cacenet_jax.errors import UserError


def settings_of(**fields):
    return optim.Settings(**{"warmup_epochs": 2.0, **fields})


def schedule_of(settings, batch_size=16, steps_per_epoch=10):
    return optim.schedule(settings, batch_size, epochs=20, steps_per_epoch=steps_per_epoch)


def constant_rate(**fields):
    """Settings whose learning rate is its peak at step 0 and stays there for the steps of a test."""
    return settings_of(warmup_epochs=0.0, **fields)


@pytest.mark.parametrize("step", [0, 1, 10, 19, 20, 21, 110, 199, 200, 500])
def test_schedule_has_the_papers_values(step):
    """Linear from 0 over 20 of 200 steps, then half a cosine to 0."""
    found = schedule_of(settings_of())(step)
    fall = min((step - 20) / 180, 1)
    expected = 6.25e-3 * (step / 20 if step < 20 else (1 + math.cos(math.pi * fall)) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(("batch_size", "factor"), [(16, 1), (64, 4), (4, 0.25)])
def test_peak_scales_linearly_with_the_batch(batch_size, factor):
    rate = schedule_of(settings_of(), batch_size)
    np.testing.assert_allclose(rate(20), 6.25e-3 * factor, rtol=1e-6)


def test_without_warmup_the_first_step_has_the_peak():
    np.testing.assert_allclose(schedule_of(constant_rate())(0), 6.25e-3, rtol=1e-6)


KEPT, ATTENTION = ("backbone", "individual_head"), ("intra_weight", "cross_weight")
PARAMS = {
    "conv": {"kernel": np.array([1.0, -2.0])},
    "intra_weight": np.array([3.0]),
    "cross_weight": np.array([-4.0]),
}


def run(settings, params, grads, kept=()):
    optimizer = optim.optimizer(settings, schedule_of(settings, steps_per_epoch=10**6), kept=kept, attention=ATTENTION)
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(jax.tree.map(lambda x, g=grad: jnp.full_like(x, g), params), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("attention_scale", [1.0, 10.0, 0.0])
def test_sgd_equals_the_torch_update(x64, attention_scale):
    """g <- g + decay p; buffer <- momentum buffer + g; p <- p - rate buffer; no decay of w and w'."""
    gradients, rate, decay = [0.3, -0.2, 0.5], 0.1, 0.01
    settings = constant_rate(learning_rate=rate, weight_decay=decay, attention_scale=attention_scale)
    found = run(settings, PARAMS, gradients)

    def by_hand(values, decay, rate):
        out = []
        for p in values:
            buffer = 0.0
            for g in gradients:
                buffer = 0.9 * buffer + (g + decay * p)
                p = p - rate * buffer
            out.append(p)
        return out

    # The schedule's rate is a float32 number, 1.5e-8 away from 0.1.
    np.testing.assert_allclose(found["conv"]["kernel"], by_hand(PARAMS["conv"]["kernel"], decay, rate), rtol=1e-7)
    for name in ("intra_weight", "cross_weight"):
        np.testing.assert_allclose(found[name], by_hand(PARAMS[name], 0.0, rate * attention_scale), rtol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_the_attention_weights(name):
    settings = constant_rate(name=name, learning_rate=0.1, weight_decay=0.5)
    found = run(settings, PARAMS, [0.0])
    np.testing.assert_allclose(found["conv"]["kernel"], PARAMS["conv"]["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(found["intra_weight"], PARAMS["intra_weight"])
    np.testing.assert_array_equal(found["cross_weight"], PARAMS["cross_weight"])


def test_adamw_decay_is_decoupled_from_the_gradient(x64):
    """Adam's first step is rate times the sign of the gradient, the decay comes on top."""
    found = run(constant_rate(name="adamw", learning_rate=0.1, weight_decay=0.01), PARAMS, [0.3])
    kernel = PARAMS["conv"]["kernel"]
    np.testing.assert_allclose(found["conv"]["kernel"], kernel - 0.1 * (1 + 0.01 * kernel), rtol=1e-6)
    np.testing.assert_allclose(found["intra_weight"], PARAMS["intra_weight"] - 0.1, rtol=1e-6)


def test_clipping_limits_the_norm_of_the_gradient(x64):
    found = run(constant_rate(learning_rate=1.0, weight_decay=0.0, clip_norm=1.0), PARAMS, [5.0])
    np.testing.assert_allclose(found["conv"]["kernel"], PARAMS["conv"]["kernel"] - 0.5, rtol=1e-9)  # four equal entries


def test_unknown_optimiser_names_both_sides():
    with pytest.raises(UserError, match=r"'lion'.*'sgd' or 'adamw'"):
        optim.optimizer(settings_of(name="lion"), optax.constant_schedule(0.1))


def test_a_frozen_network_is_neither_trained_nor_decayed():
    settings = constant_rate(name="adamw", learning_rate=0.1, weight_decay=0.5)
    params = {"backbone": PARAMS["conv"], "individual_head": PARAMS["conv"], "local_evidence": PARAMS["conv"]}
    found = run(settings, params, [1.0, -2.0], kept=KEPT)
    for name in ("backbone", "individual_head"):
        np.testing.assert_array_equal(found[name]["kernel"], PARAMS["conv"]["kernel"])
    assert (abs(found["local_evidence"]["kernel"] - PARAMS["conv"]["kernel"]) > 0.01).all()
    state = optim.optimizer(settings, optax.constant_schedule(0.1), kept=KEPT).init(params)
    moments = [x.shape for x in jax.tree.leaves(state) if x.ndim]
    assert moments == [PARAMS["conv"]["kernel"].shape] * 2  # of local_evidence alone
