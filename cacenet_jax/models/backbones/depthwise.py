"""Depthwise convolution, with one implementation for accelerators and one for CPUs.

Axes: B images, H x W positions, C channels, h x w positions of the output, K x K taps of the kernel.

XLA's grouped convolution is slow on a CPU, and its gradients even slower. The CPU implementation is a sum of K * K
shifted copies of the input, each multiplied by one weight per channel, which XLA fuses into one loop.
"""

import operator
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

# TensorFlow: normal with variance 2 / K^2, because the fan of a depthwise kernel is counted per channel.
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zero padding (before, after) of an axis for ceil(size / stride) outputs; any odd zero goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _paddings(shape: tuple[int, ...], kernel: int, stride: int, symmetric: bool) -> list[tuple[int, int]]:
    if symmetric:
        return [(kernel // 2, kernel // 2)] * 2
    return [same_padding(size, kernel, stride) for size in shape[1:3]]


def _taps(x_BHWC: Array, kernel: int, stride: int, height: int, width: int) -> Iterator[tuple[int, int, Array]]:
    """Yield (row, column, slice of the padded input) for each tap of the kernel."""
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            yield i, j, x_BHWC[:, rows, columns]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_slices(
    x_BHWC: Float[Array, "B H W C"], kernel_KKC: Float[Array, "K K C"], stride: int, symmetric: bool
) -> Float[Array, "B h w C"]:
    """Compute the convolution as a sum of shifted products, accumulated in at least float32.

    Padding is as in `DepthwiseConv`. Only reverse-mode differentiation is supported.
    """
    size = kernel_KKC.shape[0]
    wide = jnp.promote_types(x_BHWC.dtype, jnp.float32)
    height, width = (-(-n // stride) for n in x_BHWC.shape[1:3])
    padded_BHWC = jnp.pad(x_BHWC, ((0, 0), *_paddings(x_BHWC.shape, size, stride, symmetric), (0, 0)))
    taps = _taps(padded_BHWC, size, stride, height, width)
    products = (tap.astype(wide) * kernel_KKC[i, j].astype(wide) for i, j, tap in taps)
    return reduce(operator.add, products).astype(x_BHWC.dtype)


def _forward(x_BHWC: Array, kernel_KKC: Array, stride: int, symmetric: bool) -> tuple[Array, tuple[Array, Array]]:
    return by_slices(x_BHWC, kernel_KKC, stride, symmetric), (x_BHWC, kernel_KKC)


def _backward(stride: int, symmetric: bool, saved: tuple[Array, Array], grad_BHWC: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_KKC = saved
    grad_x_BHWC = _input_gradient(x_BHWC.shape, kernel_KKC, grad_BHWC, stride, symmetric)
    return grad_x_BHWC, _kernel_gradient(x_BHWC, kernel_KKC, grad_BHWC, stride, symmetric)


def _input_gradient(shape: tuple[int, ...], kernel_KKC: Array, grad_BHWC: Array, stride: int, symmetric: bool) -> Array:
    """Compute the gradient of the input.

    This is the sum of `by_slices` with the kernel rotated by 180 degrees, applied to the output gradient with zeros
    inserted between its positions.
    """
    size = kernel_KKC.shape[0]
    wide = jnp.promote_types(grad_BHWC.dtype, jnp.float32)
    padding = [(0, 0, 0)]
    paddings = _paddings(shape, size, stride, symmetric)
    for n, out, (before, _) in zip(shape[1:3], grad_BHWC.shape[1:3], paddings, strict=True):
        padding.append((size - 1 - before, n - 1 - (out - 1) * stride + before, stride - 1))
    spread_BHWC = lax.pad(grad_BHWC, jnp.zeros((), grad_BHWC.dtype), (*padding, (0, 0, 0)))
    taps = _taps(spread_BHWC, size, 1, *shape[1:3])
    products = (tap.astype(wide) * kernel_KKC[size - 1 - i, size - 1 - j].astype(wide) for i, j, tap in taps)
    return reduce(operator.add, products).astype(grad_BHWC.dtype)


def _kernel_gradient(x_BHWC: Array, kernel_KKC: Array, grad_BHWC: Array, stride: int, symmetric: bool) -> Array:
    """Compute the gradient of the kernel.

    On a CPU, products are first summed over images at each position, so that the loops run over whole rows that stay in
    the cache. Elsewhere, a loop over images would be a sequence of small kernels.
    """
    size = kernel_KKC.shape[0]
    wide = jnp.promote_types(x_BHWC.dtype, jnp.float32)
    padded_BHWC = jnp.pad(x_BHWC, ((0, 0), *_paddings(x_BHWC.shape, size, stride, symmetric), (0, 0)))
    if jax.default_backend() != "cpu":
        taps = _taps(padded_BHWC, size, stride, *grad_BHWC.shape[1:3])
        sums = [(tap.astype(wide) * grad_BHWC.astype(wide)).sum(axis=(0, 1, 2)) for _, _, tap in taps]
        return jnp.stack(sums).reshape(kernel_KKC.shape).astype(kernel_KKC.dtype)

    def add(sums: list[Array], image: tuple[Array, Array]) -> tuple[list[Array], None]:
        x_HWC, grad_HWC = image
        taps = _taps(x_HWC[None], size, stride, *grad_HWC.shape[:2])
        return [
            s + tap[0].astype(wide) * grad_HWC.astype(wide) for s, (_, _, tap) in zip(sums, taps, strict=True)
        ], None

    sums, _ = lax.scan(add, [jnp.zeros(grad_BHWC.shape[1:], wide)] * size**2, (padded_BHWC, grad_BHWC))
    return jnp.stack([s.sum(axis=(0, 1)) for s in sums]).reshape(kernel_KKC.shape).astype(kernel_KKC.dtype)


by_slices.defvjp(_forward, _backward)


class DepthwiseConv(nn.Module):
    """A depthwise convolution without bias, with the same parameter as `nn.Conv`: `kernel` of shape (K, K, 1, C).

    Attributes:
        kernel_size: K.
        stride: stride in both directions; the output has ceil(H / stride) x ceil(W / stride) positions.
        slices: use `by_slices`, which computes the same result many times faster on a CPU.
        dtype: compute dtype; the parameter is float32.
        symmetric: pad by K // 2 zeros on all four sides, as is usual in torch, instead of TensorFlow's "SAME". They
            differ for strided convolutions of an even number of positions.
        kernel_init: initialiser of the kernel.
    """

    kernel_size: int
    stride: int = 1
    slices: bool = False
    dtype: Any = jnp.float32
    symmetric: bool = False
    kernel_init: nn.initializers.Initializer = depthwise_init

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Convolve every channel with its own kernel."""
        size, channels = self.kernel_size, x_BHWC.shape[-1]
        kernel_KK1C = self.param("kernel", self.kernel_init, (size, size, 1, channels), jnp.float32)
        x_BHWC, kernel_KK1C = x_BHWC.astype(self.dtype), kernel_KK1C.astype(self.dtype)
        if self.slices:
            return by_slices(x_BHWC, kernel_KK1C[:, :, 0], self.stride, self.symmetric)
        return lax.conv_general_dilated(
            x_BHWC,
            kernel_KK1C,
            (self.stride, self.stride),
            _paddings(x_BHWC.shape, size, self.stride, self.symmetric),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
