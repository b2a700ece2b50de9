"""Non-local block, embedded Gaussian (Wang et al. 2018, https://arxiv.org/abs/1711.07971).

Legend: B images, H x W positions (N = H W), C channels, E = C / 16 inner channels.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

REDUCTION = 16  # channel reduction inside the block


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initialise a 1x1 convolution as PyTorch does, uniformly within ±1 / sqrt(inputs).

    A bias of length E is assumed to belong to a kernel with 16 E inputs.
    """
    inputs = shape[0] if len(shape) > 1 else REDUCTION * shape[0]
    return jax.random.uniform(key, shape, dtype, -1, 1) / math.sqrt(inputs)


class NonLocal(nn.Module):
    """x + W(softmax_m(theta(x_n) . phi(x_m)) g(x_m)), with biased 1x1 convolutions theta, phi, g, W and no batch norm.

    W is initialised to zero, so the block starts as the identity. (The authors initialise the bias of W randomly.)

    Attributes:
        dtype: compute dtype of matrix products; the softmax is computed in at least float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Add to each position an attention-weighted sum over all positions of the image."""
        batch, height, width, channels = x_BHWC.shape
        inside = max(channels // REDUCTION, 1)
        dense = lambda name: nn.Dense(
            inside, dtype=self.dtype, kernel_init=torch_uniform, bias_init=torch_uniform, name=name
        )
        x_BNC = x_BHWC.reshape(batch, height * width, channels).astype(self.dtype)
        theta_BNE, phi_BNE, g_BNE = (dense(name)(x_BNC) for name in ("theta", "phi", "g"))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        score_BNN = jnp.einsum("bne,bme->bnm", theta_BNE, phi_BNE, preferred_element_type=wide)
        drawn_BNE = jax.nn.softmax(score_BNN, axis=-1).astype(self.dtype) @ g_BNE
        zeros = nn.initializers.zeros
        out_BNC = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="W")(drawn_BNE)
        return x_BHWC.astype(self.dtype) + out_BNC.reshape(x_BHWC.shape)
