"""From maps to embeddings: the individual head (paper section 3.2) and the conditional head (sections 3.4 and 3.5).

Legend: B images, R x C pairs (target u, context v), D channels of a map, F embedding size, I training identities.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.models.graph import Kind, neighbour_sign

_EPSILON = 1e-5  # of the batch norms
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # of a shared encoder, as the authors' release


class Embedded(NamedTuple):
    """An embedding and the scores of the training identities.

    Attributes:
        embedding: (..., F), not normalised, float32.
        logits: (..., I), float32.
    """

    embedding: Array
    logits: Array


def near_identity(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A square filter that starts as the identity: the graph's own output, unmixed."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class EmbeddingHead(nn.Module):
    """1x1 convolution D -> F on a pooled map, batch norm, linear classifier.

    On a pooled map the 1x1 convolution is a matrix product. It has no bias, the batch norm after it has one.

    Attributes:
        embed_dim: F.
        num_identities: I, classes of the training set.
        dtype: compute type of the products; statistics, embedding and logits are float32.
        axis_name: device axis over which batch statistics are averaged, None on one device.
        relu: whether the classifier sees the embedding after a ReLU.
        dropout: share of what the classifier sees that is 0 in training (rng stream "dropout"), the same on any number of
            devices.
        shared: whether the head encodes pairs too, and has a second classifier for them.
    """

    embed_dim: int
    num_identities: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    relu: bool = False
    dropout: float = 0.0
    shared: bool = False

    def setup(self) -> None:
        """Creates the layers."""
        linear = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        small = nn.initializers.normal(0.001)
        self.conv = linear(self.embed_dim, **({"kernel_init": _KAIMING} if self.shared else {}))
        self.bn = nn.BatchNorm(momentum=0.9, epsilon=_EPSILON, axis_name=self.axis_name, dtype=None)
        self.classifier = linear(self.num_identities, kernel_init=small)
        if self.shared:
            self.pair_classifier = linear(self.num_identities, kernel_init=small)

    def _encode(self, pooled: Array) -> Array:
        return self.conv(pooled).astype(jnp.promote_types(pooled.dtype, jnp.float32))

    def embed_nodes(self, nodes: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        """Single nodes of a map as embeddings by the running statistics, which get no gradient and no update.

        In test mode the mean of an image's nodes is f(I).
        """
        encoded = self._encode(nodes)
        mean, var = (jax.lax.stop_gradient(self.bn.get_variable("batch_stats", name)) for name in ("mean", "var"))
        scale, bias = (self.bn.get_variable("params", name) for name in ("scale", "bias"))
        return (encoded - mean) * jax.lax.rsqrt(var + _EPSILON) * scale + bias

    def __call__(self, pooled: Float[Array, "*batch D"], *, train: bool) -> Embedded:
        """Pooled maps (..., D) to embeddings (..., F) and logits (..., I)."""
        return self.finish(self._encode(pooled), train=train)

    def finish(self, encoded: Float[Array, "*batch F"], *, train: bool) -> Embedded:
        """What the 1x1 convolution gave to embeddings (..., F) and logits (..., I)."""
        embedding = self.bn(encoded, use_running_average=not train)
        return Embedded(embedding, self._scores(self.classifier, embedding, train))

    def finish_pairs(self, encoded_RCF: Float[Array, "R C F"], *, train: bool) -> Embedded:
        """As `finish`, of a grid of pairs, with the second classifier of a shared head.

        The running statistics take the grid's in twice: the authors' network encodes both orders of every pair, one after
        the other, and the second grid is the first one transposed.
        """
        for _ in range(2 if train else 1):
            embedding_RCF = self.bn(encoded_RCF, use_running_average=not train)
        return Embedded(embedding_RCF, self._scores(self.pair_classifier, embedding_RCF, train))

    def _scores(self, classifier: nn.Dense, embedding: Array, train: bool) -> Array:
        """Logits, of the embedding's type."""
        seen = nn.relu(embedding) if self.relu else embedding
        if train and self.dropout:
            seen = self._drop(seen)
        return classifier(seen).astype(embedding.dtype)

    def _drop(self, seen: Array) -> Array:
        """Zeros and rescaled values; an image's mask follows from its place in the global batch."""
        rows, key = seen.shape[0], self.make_rng("dropout")
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * rows
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(rows))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, seen.shape[1:]))(keys)
        return jnp.where(keep, seen / (1 - self.dropout), 0)

    @property
    def kernel(self) -> Float[Array, "D F"]:
        """The 1x1 convolution of an initialised head."""
        return self.conv.variables["params"]["kernel"]


class ConditionalHead(nn.Module):
    """Theta of the graph convolution, then an embedding head of its own.

    Tied (equation 7, the paper): f(u|v) = head((mean_u X - mean_u[R A R X]) Theta).
    Untied (equation 5 before it is tied): f(u|v) = head(mean_u X Theta_0 - mean_u[R A R X] Theta_1).

    Attributes:
        channels: D.
        embed_dim: F.
        num_identities: I.
        kind: "discrepancy" or "normal", the sign of the neighbours.
        filters: "tied" or "untied".
        theta_init: initialiser of Theta, (D, D).
        dtype: compute type of the products.
        axis_name: device axis over which batch statistics are averaged.
        relu: as in `EmbeddingHead`.
        dropout: as in `EmbeddingHead`.
    """

    channels: int
    embed_dim: int
    num_identities: int
    kind: Kind = "discrepancy"
    filters: Literal["tied", "untied"] = "tied"
    theta_init: Callable[..., Array] = near_identity
    dtype: Any = jnp.float32
    axis_name: str | None = None
    relu: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        """Creates the filters and the embedding head."""
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
        """Mean of u's map and its mean neighbour (broadcast against each other) to f(u|v) and logits."""
        return self.head(self._filter(own, neighbour, self._thetas()), train=train)

    def encoder(self, num_pairs: int) -> Callable[[Array, Array], Float[Array, "*batch F"]]:
        """The linear part of an initialised head as a pure function of the two means; `finish` does the rest.

        Args:
            num_pairs: pairs that it will encode. Theta and the convolution become one D x F matrix where making it
                costs less than it saves: from F pairs on.
        """
        kernels, conv = self._thetas(), self.head.kernel
        if num_pairs >= self.embed_dim:
            kernels = [self._product(theta, conv) for theta in kernels]
            return lambda own, neighbour: self._filter(own, neighbour, kernels)
        return lambda own, neighbour: self._product(self._filter(own, neighbour, kernels), conv)

    def finish(self, encoded: Float[Array, "*batch F"], *, train: bool) -> Embedded:
        """What `encoder` gave to f(u|v) and logits; the batch norm sees the whole grid."""
        return self.head.finish(encoded, train=train)


def normalise(x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
    """x / |x| along the last axis in at least float32; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    return x * jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, square, 1)), 0)
