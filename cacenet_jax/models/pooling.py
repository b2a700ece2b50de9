"""Generalised-mean pooling (Radenovic, Tolias and Chum 2018, https://arxiv.org/abs/1711.02512).

Legend: N positions of a map, D channels.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

AnyArray = Array | ndarray

SMALLEST = 1e-6  # lower clamp
START = 3.0  # initial exponent


def generalised_mean(
    nodes_ND: Float[AnyArray, "*batch N D"], exponent: Float[AnyArray, "*#one"] | None
) -> Float[Array, "*batch D"]:
    """Compute (mean_n max(x_n, 1e-6)^p)^(1/p) in at least float32.

    Args:
        nodes_ND: maps, one row per position.
        exponent: the scalar p; None for the plain mean, without clamping.
    """
    nodes_ND = jnp.asarray(nodes_ND)
    wide = jnp.promote_types(nodes_ND.dtype, jnp.float32)
    if exponent is None:
        return nodes_ND.mean(axis=-2, dtype=wide)
    p = jnp.asarray(exponent, wide).reshape(())
    return (jnp.maximum(nodes_ND.astype(wide), SMALLEST) ** p).mean(axis=-2) ** (1 / p)


class GeneralisedMean(nn.Module):
    """Module that holds the learned exponent p of `generalised_mean`."""

    @nn.compact
    def __call__(self) -> Float[Array, "1"]:
        """Return p, which is initialised to 3. Pooling is the mean for p = 1 and tends to the maximum for large p."""
        return self.param("p", nn.initializers.constant(START), (1,))
