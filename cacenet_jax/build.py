"""From a config to the objects it describes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cacenet_jax.data.augment import Augment, normalise_images
from cacenet_jax.models import resnet
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.retrieval.rescore import Features
from cacenet_jax.train_step import LossWeights


def model(config: ConfigDict, num_identities: int, axis_name: str | None = None) -> CACENet:
    """The network of a config for a number of training identities."""
    settings = config.model
    dtype = jnp.dtype(settings.dtype)
    fields: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "last_stride": settings.last_stride}
    if settings.width:
        fields["width"] = settings.width
    return CACENet(
        backbone=resnet.build(settings.backbone, **fields),
        num_identities=num_identities,
        embed_dim=settings.embed_dim,
        pairs=settings.pairs,
        kind=settings.kind,
        filters=settings.filters,
        keys=settings.affinity,
        clue_weight=settings.clue_weight,
        pair_memory_mib=settings.pair_memory_mib,
        dtype=dtype,
        axis_name=axis_name,
    )


def loss_weights(config: ConfigDict) -> LossWeights:
    """Weights and constants of the loss."""
    return LossWeights(**config.loss.to_dict())


def augmentation(config: ConfigDict) -> Augment:
    """What happens to a training image."""
    return Augment(**config.augment.to_dict())


def describe_fn(net: CACENet, variables: Any, flip: bool) -> Callable[[Any], Features]:
    """Compiled uint8 images (B, H, W, 3) to what retrieval keeps; with `flip`, of the map averaged over both mirrorings.

    The mirrored image's map is mirrored back before it is averaged, so that positions match.
    """

    @jax.jit
    def describe(variables: Any, images: jax.Array) -> Features:
        pixels = normalise_images(images)
        maps = net.apply(variables, pixels, train=False, method="maps")
        if flip:
            mirrored = net.apply(variables, pixels[:, :, ::-1], train=False, method="maps")
            maps = (maps + mirrored[:, :, ::-1]) / 2
        described = net.apply(variables, maps, method="describe")
        return Features(described.embedding, described.terms)

    return lambda images: describe(variables, images)


def pair_distance_fn(net: CACENet, variables: Any) -> Callable[[Any, Any], jax.Array] | None:
    """Distance of two images from their terms; None in a network without the pair stage."""
    if not net.pairs:
        return None

    def pair_distance(u: Any, v: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # a reported distance; GPUs and TPUs round products by default
            return net.apply(variables, u, v, method="pair_distance")

    return pair_distance
