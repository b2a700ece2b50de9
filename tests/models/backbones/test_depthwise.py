"""The depthwise convolution: its form for CPUs against XLA's own, in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.models.backbones.depthwise import DepthwiseConv, same_padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (64, 3, 2, (0, 1)),
        (64, 5, 2, (1, 2)),
        (15, 3, 2, (1, 1)),
        (15, 5, 2, (2, 2)),
        (8, 5, 1, (2, 2)),
        (1, 3, 2, (1, 1)),
        (2, 1, 2, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(6, 4), (7, 5), (1, 3)])
@pytest.mark.parametrize(
    ("kernel", "stride", "symmetric"), [(3, 1, False), (3, 2, False), (5, 1, False), (5, 2, False), (3, 2, True)]
)
def test_forms_agree_in_value_and_gradients(shape, kernel, stride, symmetric, backend, x64, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # each has its own gradient of the kernel
    rng = np.random.default_rng(0)
    x_BHWC = jnp.asarray(rng.standard_normal((2, *shape, 3)))
    params = {"params": {"kernel": jnp.asarray(rng.standard_normal((kernel, kernel, 1, 3)))}}

    def loss(params, x_BHWC, slices):
        y_BHWC = DepthwiseConv(kernel, stride, slices, jnp.float64, symmetric).apply(params, x_BHWC)
        return (jnp.cos(jnp.arange(y_BHWC.size)).reshape(y_BHWC.shape) * y_BHWC).sum(), y_BHWC

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    ((_, expected), expected_grads), ((_, found), grads) = grad(params, x_BHWC, False), grad(params, x_BHWC, True)
    assert expected.shape == (2, -(-shape[0] // stride), -(-shape[1] // stride), 3)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert float(np.abs(expected).max()) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), grads, expected_grads)


def test_bfloat16_is_added_up_in_float32():
    """A sum of 25 ones and a half: bfloat16 would stop counting the small parts."""
    x_BHWC = jnp.full((1, 5, 5, 1), 1.0, jnp.bfloat16)
    kernel = jnp.full((5, 5, 1, 1), 1 / 256).at[2, 2].set(1.0)
    conv = DepthwiseConv(5, 1, slices=True, dtype=jnp.bfloat16)
    found = conv.apply({"params": {"kernel": kernel}}, x_BHWC)
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 2, 2, 0]) == float(jnp.asarray(1 + 24 / 256, jnp.bfloat16))


def test_symmetric_padding_starts_one_position_earlier():
    """With stride 2, three ones see positions (0, 1), (1, 2, 3) with torch's padding, and (0, 1, 2), (2, 3) without."""
    x_BHWC = jnp.asarray([0.0, 1.0, 2.0, 4.0]).reshape(1, 1, 4, 1)
    kernel = {"params": {"kernel": jnp.zeros((3, 3, 1, 1)).at[1].set(1.0)}}
    for slices in (False, True):
        sums = [DepthwiseConv(3, 2, slices, symmetric=s).apply(kernel, x_BHWC).ravel().tolist() for s in (True, False)]
        assert sums == [[1, 7], [3, 6]]
