"""Heads that map pooled feature maps to embeddings and logits (paper section 3.2).

Legend: B images, R x C pairs (target u, context v), D channels of a map, F embedding size, I training identities.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cacenet_jax.distributed.collectives import pmean

# Spread up to which embeddings count as constant: the batch norm multiplies rounding errors by up to 1 / sqrt(1e-5), and
# otherwise scales each channel to a spread of about 1.
CONSTANT = 1e-3
_EPSILON = 1e-5  # batch norm
_LECUN = nn.initializers.lecun_normal()  # flax default
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # shared encoder, as in the authors' release


class Embedded(NamedTuple):
    """An embedding and its logits over the training identities.

    Attributes:
        embedding: (..., F), unnormalised, float32.
        logits: (..., I), float32.
    """

    embedding: Array
    logits: Array


class EmbeddingHead(nn.Module):
    """1x1 convolution D -> F on a pooled map, batch norm and linear classifier.

    On a pooled map the 1x1 convolution is a matrix product. It needs no bias because the batch norm after it has one.

    Attributes:
        embed_dim: F, embedding size.
        num_identities: I, number of training identities.
        dtype: compute dtype of matrix products; statistics, embedding and logits are float32.
        axis_name: device axis over which batch statistics are averaged, None on one device.
        relu: apply a ReLU between the embedding and its classifier.
        dropout: dropout rate before the classifier (rng stream "dropout"). The masks do not depend on the number of
            devices.
        shared: add a second classifier, for pairs that are encoded by the same layers.
        bias: give the 1x1 convolution and the classifier a bias, as torchreid's networks have.
        embedding_relu: apply a ReLU to the embedding itself, in retrieval too, as torchreid's networks do.
    """

    embed_dim: int
    num_identities: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    relu: bool = False
    dropout: float = 0.0
    shared: bool = False
    bias: bool = False
    embedding_relu: bool = False

    def setup(self) -> None:
        """Create the layers."""
        linear = partial(nn.Dense, use_bias=self.bias, dtype=self.dtype)
        small = nn.initializers.normal(0.001)
        self.conv = linear(self.embed_dim, kernel_init=_KAIMING if self.shared else _LECUN)
        self.bn = nn.BatchNorm(momentum=0.9, epsilon=_EPSILON, axis_name=self.axis_name, dtype=None)
        self.classifier = linear(self.num_identities, kernel_init=small)
        if self.shared:
            self.pair_classifier = linear(self.num_identities, kernel_init=small)

    def _encode(self, pooled: Array) -> Array:
        return self.conv(pooled).astype(jnp.promote_types(pooled.dtype, jnp.float32))

    def embed_nodes(self, nodes: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        """Embed individual nodes of a map with the running statistics, which receive no gradient and no update.

        In inference mode with mean pooling, f(I) is the mean of these embeddings over the nodes of an image, to which
        `embedding_relu` is applied afterwards.
        """
        encoded = self._encode(nodes)
        statistics, params = jax.lax.stop_gradient(self.bn.variables["batch_stats"]), self.bn.variables["params"]
        mean, var, scale, bias = statistics["mean"], statistics["var"], params["scale"], params["bias"]
        return (encoded - mean) * jax.lax.rsqrt(var + _EPSILON) * scale + bias

    def __call__(self, pooled: Float[Array, "*batch D"], *, train: bool) -> Embedded:
        """Map pooled maps (..., D) to embeddings (..., F) and logits (..., I)."""
        return self.finish(self._encode(pooled), train=train)

    def finish(self, encoded: Float[Array, "*batch F"], *, train: bool) -> Embedded:
        """Apply batch norm and classifier to encoded maps, giving embeddings (..., F) and logits (..., I)."""
        embedding = self.bn(encoded, use_running_average=not train)
        if self.embedding_relu:
            embedding = nn.relu(embedding)
        return Embedded(embedding, self._scores(self.classifier, embedding, train))

    def finish_pairs(self, encoded_RCF: Float[Array, "R C F"], *, train: bool) -> Embedded:
        """Apply batch norm and the second classifier of a shared head to a grid of encoded pairs.

        The running statistics are updated twice, because the authors' network encodes both orders of every pair in turn
        and the second grid is the transpose of the first.
        """
        for _ in range(2 if train else 1):
            embedding_RCF = self.bn(encoded_RCF, use_running_average=not train)
        return Embedded(embedding_RCF, self._scores(self.pair_classifier, embedding_RCF, train))

    def _scores(self, classifier: nn.Dense, embedding: Array, train: bool) -> Array:
        """Compute logits in the type of the embedding."""
        seen = nn.relu(embedding) if self.relu else embedding
        if train and self.dropout:
            seen = self._drop(seen)
        return classifier(seen).astype(embedding.dtype)

    def _drop(self, seen: Array) -> Array:
        """Apply dropout with one mask per image, derived from its index in the global batch."""
        rows, key = seen.shape[0], self.make_rng("dropout")
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * rows
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(rows))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, seen.shape[1:]))(keys)
        return jnp.where(keep, seen / (1 - self.dropout), 0)

    @property
    def kernel(self) -> Float[Array, "D F"]:
        """Kernel of the 1x1 convolution in an initialised head."""
        return self.conv.variables["params"]["kernel"]

    def norm_affine(self) -> tuple[Float[Array, "F"], Float[Array, "F"]]:
        """Return the scale and bias of the batch norm in inference mode; the head must be initialised."""
        statistics, params = self.bn.variables["batch_stats"], self.bn.variables["params"]
        scale_F = params["scale"] / jnp.sqrt(statistics["var"] + _EPSILON)
        return scale_F, params["bias"] - statistics["mean"] * scale_F


def spread(x: Float[Array, "*batch F"], axis_name: str | None = None) -> Float[Array, ""]:
    """Compute the standard deviation over the batch of all devices, as a root mean square over channels.

    The result carries no gradient.

    Args:
        x: embeddings on this device.
        axis_name: device axis, or None on a single device.
    """
    x = jax.lax.stop_gradient(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x.reshape(-1, x.shape[-1])
    centred = x - pmean(x.mean(axis=0), axis_name)
    return jnp.sqrt(pmean((centred * centred).mean(), axis_name))


def normalise(x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
    """Normalise to unit length along the last axis in at least float32; a zero vector stays zero with zero gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    return x * jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, square, 1)), 0)
