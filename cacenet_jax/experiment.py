"""From a config to the objects it describes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from cacenet_jax.data.augment import Augment, normalise_images
from cacenet_jax.models import backbones
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.pair_stages.conditional import stored
from cacenet_jax.retrieval.extract import Features
from cacenet_jax.train_step import LossWeights


def model(config: ConfigDict, num_identities: int, axis_name: str | None = None) -> CACENet:
    """The network of a config for a number of training identities."""
    settings = config.model
    dtype = jnp.dtype(settings.dtype)
    fields = backbones.configured(settings) | {"dtype": dtype, "axis_name": axis_name}
    return CACENet(
        backbone=backbones.build(settings.backbone, **fields),
        num_identities=num_identities,
        embed_dim=settings.embed_dim,
        pairs=settings.pairs,
        pair_score=settings.pair_score,
        evidence_channels=settings.evidence_channels,
        frozen=settings.frozen,
        alignment=settings.alignment,
        neighbours=settings.neighbours,
        kind=settings.kind,
        filters=settings.filters,
        keys=settings.affinity,
        clue_weight=settings.clue_weight,
        pooling=settings.pooling,
        shared_encoder=settings.shared_encoder,
        relu=settings.relu,
        dropout=settings.dropout,
        pair_memory_mib=settings.pair_memory_mib,
        dtype=dtype,
        axis_name=axis_name,
    )


def part_labels(config: ConfigDict) -> Any:
    """What reads part labels, a `data.parts.PartLabels`; None for a network that needs none."""
    from cacenet_jax.data.part_labels import PartLabels  # here: an export to ONNX has no libraries that read data

    needed = config.model.pairs and config.model.alignment == "semantic"
    return PartLabels(config.data.parts) if needed else None


def loss_weights(config: ConfigDict) -> LossWeights:
    """Weights and constants of the loss."""
    return LossWeights(**config.loss.to_dict())


def augmentation(config: ConfigDict) -> Augment:
    """What happens to a training image; the backbone says how its pixels are normalised."""
    backbone = backbones.build(config.model.backbone, **backbones.configured(config.model))
    return Augment(**config.augment.to_dict(), mean=backbone.pixel_mean, std=backbone.pixel_std)


class Scoring(NamedTuple):
    """The functions that score a network; one object for each network and setting, so that each compiles once.

    Attributes:
        compose: variables to the constants of the pair stage; None in a network without it.
        describe: (variables, constants) and uint8 images (B, H, W, image_channels) to what retrieval keeps of them.
        distance: constants, terms of one image and of C others to C distances; None without the pair stage.
    """

    compose: Callable[[Any], Any] | None
    describe: Callable[[Any, Any], Features]
    distance: Callable[[Any, Any, Any], Any] | None


def feature_maps(
    net: CACENet, variables: Any, images_BHWC: UInt8[Array, "B H W C"], flip: bool
) -> Float[Array, "B h w D"]:
    """Maps of uint8 images in test mode.

    Args:
        net: the network.
        variables: its parameters and statistics.
        images_BHWC: uint8 images; channels after the colours are not looked at.
        flip: average the maps of an image and its mirror image, which is mirrored back first so that positions match.
    """
    pixels = normalise_images(images_BHWC[..., :3], net.backbone.pixel_mean, net.backbone.pixel_std)
    if flip:
        return net.apply(variables, pixels, method="mirrored_maps")
    return net.apply(variables, pixels, train=False, method="maps")


@functools.lru_cache(maxsize=4)
def scoring(net: CACENet, flip: bool, map_dtype: str) -> Scoring:
    """What retrieval needs of a network, whose variables are arguments.

    Args:
        net: the network; networks with equal fields share their functions.
        flip: as in `feature_maps`.
        map_dtype: storage type of the terms of the pair stage.
    """

    def describe(given: Any, images: jax.Array) -> Features:
        variables, constants = given
        maps = feature_maps(net, variables, images, flip)
        parts = net.parts(images, *maps.shape[1:3])
        return Features(*stored.describe(net, variables, constants, maps, jnp.dtype(map_dtype), parts))

    def distance(constants: Any, one: Any, others: Any) -> jax.Array:
        return stored.group_distance(constants, one, others, net.clue_weight, net.nearest)

    if not net.pairs:
        return Scoring(None, describe, None)
    return Scoring(jax.jit(lambda variables: stored.compose(net, variables)), describe, distance)
