"""Convolutions and pooling for ResNets, with torch's padding and alternative implementations that are faster on CPUs.

Axes: B images, H x W pixels or positions, C channels in, D channels out; images are NHWC.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

# torchvision: normal with variance 2 / (kernel height * kernel width * output channels).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros (before, after) for rows and for columns


def _conv(x_BHWC: Array, kernel_HWCD: Array, stride: int, padding: Padding) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BHWC, kernel_HWCD, (stride, stride), padding, dimension_numbers=layout)


class Conv1x1(nn.Module):
    """A 1x1 convolution without bias, with the same parameter as `nn.Conv`: `kernel` of shape (1, 1, C, D).

    Attributes:
        features: D, number of output channels.
        stride: stride in both directions.
        matmul: compute a matrix product instead of a convolution. The result is the same, and a ResNet-50 trains 1.3 to
            1.5 times as fast on a CPU, where XLA's convolution gradients are slow.
        dtype: compute dtype; the parameter is float32.
    """

    features: int
    stride: int = 1
    matmul: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Apply the convolution."""
        shape = (1, 1, x_BHWC.shape[-1], self.features)
        kernel_11CD = self.param("kernel", kaiming_fan_out, shape, jnp.float32)
        x_BHWC, kernel_11CD = x_BHWC.astype(self.dtype), kernel_11CD.astype(self.dtype)
        if not self.matmul:
            return _conv(x_BHWC, kernel_11CD, self.stride, ((0, 0), (0, 0)))
        x_BHWC = x_BHWC[:, :: self.stride, :: self.stride]
        sum_type = jnp.promote_types(self.dtype, jnp.float32)
        # Flatten to one long axis: with three axes, XLA computes the kernel gradient several times slower on a CPU.
        x_NC = x_BHWC.reshape(-1, x_BHWC.shape[-1])
        y_ND = jnp.matmul(x_NC, kernel_11CD[0, 0], preferred_element_type=sum_type).astype(self.dtype)
        return y_ND.reshape(*x_BHWC.shape[:-1], self.features)


class StemConv(nn.Module):
    """The first convolution, K x K with stride 2 and no bias.

    Like `nn.Conv`, it has one parameter, `kernel` of shape (K, K, C, D).

    Attributes:
        features: D, number of output channels.
        kernel_size: K.
        padding: zero padding on the four sides.
        pad_channels: append zero channels until C is a multiple of four. The result is the same. On a CPU, the forward
            pass on colour images is four times as fast, because three channels do not fill a vector register.
        dtype: compute dtype; the parameter is float32.
    """

    features: int
    kernel_size: int = 7
    padding: Padding = ((3, 3), (3, 3))
    pad_channels: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Apply the convolution."""
        size, channels = self.kernel_size, x_BHWC.shape[-1]
        kernel_KKCD = self.param("kernel", kaiming_fan_out, (size, size, channels, self.features), jnp.float32)
        x_BHWC, kernel_KKCD = x_BHWC.astype(self.dtype), kernel_KKCD.astype(self.dtype)
        if self.pad_channels:
            extra = -channels % 4
            x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, 0), (0, 0), (0, extra)))
            kernel_KKCD = jnp.pad(kernel_KKCD, ((0, 0), (0, 0), (0, extra), (0, 0)))
        return _conv(x_BHWC, kernel_KKCD, 2, self.padding)


@jax.custom_vjp
def _pool_by_slices(x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Take the maximum of nine shifted slices, avoiding a window reduction, whose gradient is a slow scatter."""
    rows, columns = (2 * ((size + 1) // 2) - 1 for size in x_BHWC.shape[1:3])
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    starts = [(i, j) for i in range(3) for j in range(3)]
    return reduce(jnp.maximum, [x_BHWC[:, i : i + rows : 2, j : j + columns : 2] for i, j in starts])


def _pool_backward(saved: tuple[Array, Array], grad_BHWC: Array) -> tuple[Array]:
    """Sum, at each position, the gradients of all windows that have their maximum there.

    An even row belongs to one row of windows and an odd row to two; the same is true of columns.
    """
    x_BHWC, out_BHWC = saved
    _, height, width, _ = x_BHWC.shape

    def window_of(y_BHWC: Array, down: int, right: int) -> Array:
        y_BHWC = jnp.pad(y_BHWC[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))
        return y_BHWC.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]

    is_odd_row = (jnp.arange(height) % 2 == 1)[:, None, None]
    is_odd_column = (jnp.arange(width) % 2 == 1)[:, None]
    total_BHWC = jnp.zeros_like(x_BHWC)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        won = x_BHWC == window_of(out_BHWC, down, right)
        won &= (is_odd_row | (down == 0)) & (is_odd_column | (right == 0))
        total_BHWC += jnp.where(won, window_of(grad_BHWC, down, right), 0)
    return (total_BHWC,)


_pool_by_slices.defvjp(lambda x_BHWC: (out := _pool_by_slices(x_BHWC), (x_BHWC, out)), _pool_backward)


def max_pool(x_BHWC: Float[Array, "B H W C"], *, by_slices: bool = False) -> Float[Array, "B h w C"]:
    """Apply max pooling to the output of a ReLU: 3x3 windows, stride 2, padding 1.

    The padding is zero. After a ReLU this is equivalent to torch's -inf, and it can be exported to ONNX.

    Args:
        x_BHWC: non-negative values.
        by_slices: use an implementation that is several times as fast on a CPU. The result is the same, but if
            several values of a window attain the maximum, each receives the full gradient (if they are zero, the ReLU
            blocks it). Only reverse-mode differentiation is supported.

    Returns:
        The maxima, with h = ceil(H / 2) and w = ceil(W / 2).
    """
    if by_slices:
        return _pool_by_slices(x_BHWC)
    padded_BHWC = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(padded_BHWC, window_shape=(3, 3), strides=(2, 2), padding="VALID")  # the form jax2onnx supports
