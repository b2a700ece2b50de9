"""Conditional head: Theta of the graph convolution (equations 5-7) and a separate embedding head (section 3.5).

Legend: R x C pairs (target u, context v), D channels of a map, F embedding size, I training identities.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.models.graph import Kind, neighbour_sign
from cacenet_jax.models.heads import Embedded, EmbeddingHead


class ComposedHead(NamedTuple):
    """The head in inference mode as an affine function of two means: own @ own_DF + neighbour @ near_DF + bias_F.

    Attributes:
        own_DF: matrix for the mean of u's map, composed of Theta, the encoder and the batch-norm scale.
        near_DF: corresponding matrix for the mean neighbour, including the sign of the convolution.
        bias_F: bias of the batch norm minus the scaled mean.
    """

    own_DF: Array
    near_DF: Array
    bias_F: Array


def identity_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initialise a square filter to the identity."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class ConditionalHead(nn.Module):
    """Theta of the graph convolution, followed by an embedding head.

    Tied (equation 7, the paper): f(u|v) = head((mean_u X - mean_u[R A R X]) Theta).
    Untied (equation 5, separate filters): f(u|v) = head(mean_u X Theta_0 - mean_u[R A R X] Theta_1).

    Attributes:
        channels: D, number of channels of a map.
        embed_dim: F, embedding size.
        num_identities: I, number of training identities.
        kind: "discrepancy" or "normal", which sets the sign of the neighbours.
        filters: "tied" or "untied".
        theta_init: initialiser of Theta, shape (D, D).
        dtype: compute dtype of the products.
        axis_name: device axis over which batch statistics are averaged, or None on a single device.
        relu: as in `EmbeddingHead`.
        dropout: as in `EmbeddingHead`.
    """

    channels: int
    embed_dim: int
    num_identities: int
    kind: Kind = "discrepancy"
    filters: Literal["tied", "untied"] = "tied"
    theta_init: Callable[..., Array] = identity_init
    dtype: Any = jnp.float32
    axis_name: str | None = None
    relu: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        """Create the filters and the embedding head."""
        square = (self.channels, self.channels)
        self.theta = self.param("theta", self.theta_init, square)
        if self.filters == "untied":
            self.theta_1 = self.param("theta_1", self.theta_init, square)
        rest = (self.dtype, self.axis_name, self.relu, self.dropout)
        self.head = EmbeddingHead(self.embed_dim, self.num_identities, *rest)

    def _product(self, x: Array, kernel: Array) -> Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=wide)

    def _filter(self, own: Array, neighbour: Array, kernels: Sequence[Array]) -> Array:
        sign = neighbour_sign(self.kind)
        if self.filters == "tied":
            return self._product(own + sign * neighbour, kernels[0])
        return self._product(own, kernels[0]) + sign * self._product(neighbour, kernels[1])

    def _thetas(self) -> list[Array]:
        return [self.theta] if self.filters == "tied" else [self.theta, self.theta_1]

    def __call__(self, own: Float[Array, "*own D"], neighbour: Float[Array, "*batch D"], *, train: bool) -> Embedded:
        """Compute f(u|v) and its logits from the mean of u's map and the mean neighbour, with broadcasting."""
        return self.head(self._filter(own, neighbour, self._thetas()), train=train)

    def encoder(self, num_pairs: int) -> Callable[[Array, Array], Float[Array, "*batch F"]]:
        """Return the linear part of an initialised head as a pure function of two means; `finish` applies the rest.

        Args:
            num_pairs: number of pairs to encode. With F pairs or more, composing Theta and the convolution into one
                D x F matrix costs less than it saves, so they are composed.
        """
        kernels, conv = self._thetas(), self.head.kernel
        if num_pairs >= self.embed_dim:
            kernels = [self._product(theta, conv) for theta in kernels]
            return lambda own, neighbour: self._filter(own, neighbour, kernels)
        return lambda own, neighbour: self._product(self._filter(own, neighbour, kernels), conv)

    def composed(self) -> ComposedHead:
        """Compose Theta, convolution and inference-mode batch norm of an initialised head in at least float32."""
        acc_dtype = jnp.promote_types(self.theta.dtype, jnp.float32)
        scale_F, bias_F = self.head.norm_affine()
        encoder_DF = self.head.kernel.astype(acc_dtype) * scale_F
        kernels = [theta.astype(acc_dtype) @ encoder_DF for theta in self._thetas()]
        return ComposedHead(kernels[0], neighbour_sign(self.kind) * kernels[-1], bias_F)

    def filter_map(self, own_ND: Array, neighbours_ND: Array) -> Float[Array, "N D"]:
        """Apply Theta to the nodes and the signed neighbour sums, giving the conditional map (equation 5, 6 or 7)."""
        thetas = self._thetas()
        return own_ND @ thetas[0] + neighbours_ND @ thetas[-1]

    def finish(self, encoded: Float[Array, "*batch F"], *, train: bool) -> Embedded:
        """Compute f(u|v) and its logits from the output of `encoder`; the batch norm covers the whole grid."""
        return self.head.finish(encoded, train=train)
