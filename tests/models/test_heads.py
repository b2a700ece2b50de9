"""Heads: embedding head, conditional head with tied and untied filters, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_retrieval import applied

from cacenet_jax.models.heads import EmbeddingHead, normalise
from cacenet_jax.models.pair_stages.conditional.head import ConditionalHead

D, F, I = 4, 3, 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def random_variables(head, *inputs, seed=9):
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), *inputs, train=False))
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape)), variables)


@pytest.mark.parametrize("batch", [(6,), (2, 3)], ids=["images", "grid"])
def test_embedding_head_equals_the_formula_in_training(x64, batch):
    """Product, batch norm over every leading axis, product: the statistics see all images or pairs at once."""
    head = EmbeddingHead(F, I, dtype=jnp.float64)
    pooled = jnp.asarray(draw(*batch, D))
    variables = random_variables(head, pooled)
    out, updated = applied(head, variables, pooled, train=True, mutable=["batch_stats"])
    params, stats = variables["params"], variables["batch_stats"]["bn"]
    encoded = np.asarray(pooled) @ params["conv"]["kernel"]
    rows = encoded.reshape(-1, F)
    mean, var = rows.mean(axis=0), ((rows - rows.mean(axis=0)) ** 2).mean(axis=0)
    embedding = (encoded - mean) / np.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    np.testing.assert_allclose(out.embedding, embedding, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(out.logits, embedding @ params["classifier"]["kernel"], rtol=1e-9, atol=1e-9)
    new = updated["batch_stats"]["bn"]
    np.testing.assert_allclose(new["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-9)
    np.testing.assert_allclose(new["var"], 0.9 * stats["var"] + 0.1 * var, rtol=1e-9)


def test_embedding_head_uses_running_statistics_in_evaluation(x64):
    head = EmbeddingHead(F, I, dtype=jnp.float64)
    pooled = jnp.asarray(draw(6, D))
    variables = random_variables(head, pooled)
    stats, params = variables["batch_stats"]["bn"], variables["params"]
    encoded = np.asarray(pooled) @ params["conv"]["kernel"]
    expected = (encoded - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    np.testing.assert_allclose(applied(head, variables, pooled, train=False).embedding, expected, rtol=1e-9)


@pytest.mark.parametrize("train", [False, True])
def test_embedding_head_of_torchreid_has_biases_and_a_relu_in_the_embedding(x64, train):
    """Linear with bias, batch norm, ReLU, linear classifier with bias on what comes out of the ReLU."""
    head = EmbeddingHead(F, I, dtype=jnp.float64, bias=True, embedding_relu=True)
    pooled = jnp.asarray(draw(6, D))
    variables = random_variables(head, pooled)
    params, stats = variables["params"], variables["batch_stats"]["bn"]
    encoded = np.asarray(pooled) @ params["conv"]["kernel"] + params["conv"]["bias"]
    mean, var = (encoded.mean(axis=0), encoded.var(axis=0)) if train else (stats["mean"], stats["var"])
    normal = (encoded - mean) / np.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    embedding = np.maximum(normal, 0)
    assert (normal < 0).any()
    out, _ = applied(head, variables, pooled, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(out.embedding, embedding, rtol=1e-9, atol=1e-9)
    logits = embedding @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(out.logits, logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filters", ["tied", "untied"])
@pytest.mark.parametrize(("kind", "sign"), [("discrepancy", -1), ("normal", 1)])
def test_conditional_head_filters_own_and_neighbour(x64, kind, sign, filters):
    """Equations 5-7 pooled: own Theta_0 -+ neighbour Theta_1, with Theta_1 = Theta_0 when tied."""
    head = ConditionalHead(D, F, I, kind=kind, filters=filters, dtype=jnp.float64)
    own, near = jnp.asarray(draw(2, 1, D)), jnp.asarray(draw(2, 3, D, seed=1))
    variables = random_variables(head, own, near)
    theta = variables["params"]["theta"]
    theta_1 = variables["params"].get("theta_1", theta)
    assert (filters == "tied") == ("theta_1" not in variables["params"])
    pooled = np.asarray(own @ theta + sign * (near @ theta_1))
    inner = jax.tree.map(lambda x: x, {name: tree["head"] for name, tree in variables.items()})
    expected = applied(EmbeddingHead(F, I, dtype=jnp.float64), inner, jnp.asarray(pooled), train=False)
    found = applied(head, variables, own, near, train=False)
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-10)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-10)


def test_tied_filter_is_a_special_case_of_the_untied_one(x64):
    tied, untied = (ConditionalHead(D, F, I, filters=f, dtype=jnp.float64) for f in ("tied", "untied"))
    own, near = jnp.asarray(draw(2, 1, D)), jnp.asarray(draw(2, 3, D, seed=1))
    variables = random_variables(tied, own, near)
    params = {**variables["params"], "theta_1": variables["params"]["theta"]}
    both = {**variables, "params": params}
    for have, want in zip(
        applied(untied, both, own, near, train=False), applied(tied, variables, own, near, train=False), strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=1e-12)


def test_bfloat16_products_give_float32_embeddings_and_statistics():
    own, near = jnp.asarray(draw(2, 1, D), jnp.float32), jnp.asarray(draw(2, 3, D, seed=1), jnp.float32)
    exact, rounded = (ConditionalHead(D, F, I, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = exact.init(jax.random.key(0), own, near, train=False)
    want = applied(exact, variables, own, near, train=False)
    have, updated = applied(rounded, variables, own, near, train=True, mutable=["batch_stats"])
    assert have.embedding.dtype == have.logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))
    have = applied(rounded, variables, own, near, train=False)
    np.testing.assert_allclose(have.embedding, want.embedding, rtol=0.05, atol=0.05)


def test_normalise_gives_unit_rows_and_no_nan_at_zero(x64):
    x = jnp.asarray(draw(3, F)).at[1].set(0)
    found = normalise(x)
    expected = np.stack([row / np.sqrt((row**2).sum()) if row.any() else row for row in np.asarray(x)])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    weigh = draw(3, F, seed=2)
    grad = np.asarray(jax.grad(lambda x: (weigh * normalise(x)).sum())(x))
    for row, w, g in zip(np.asarray(x), weigh, grad, strict=True):
        norm = np.sqrt((row**2).sum())
        want = (w - (w @ row) * row / norm**2) / norm if norm else np.zeros(F)
        np.testing.assert_allclose(g, want, rtol=1e-10, atol=1e-12)
    assert normalise(x.astype(jnp.bfloat16)).dtype == jnp.float32
