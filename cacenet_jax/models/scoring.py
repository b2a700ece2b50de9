"""The functions that retrieval needs of a network: its terms of uint8 images, and distances between them.

Legend: B images, H x W pixels, C channels (colours, then labels), h x w positions of a map, D channels of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.pair_stages.conditional import stored
from cacenet_jax.models.pixels import normalise_images


class Features(NamedTuple):
    """What retrieval keeps of images.

    Attributes:
        embedding: L2-normalised f(I), (B, F).
        terms: per-image terms of the pair stage, a tree of arrays with leading axis B; None without the pair stage.
    """

    embedding: Any
    terms: Any


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
