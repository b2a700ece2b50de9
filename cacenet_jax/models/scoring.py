"""Inference functions for retrieval: descriptors of uint8 images and distances between them.

Legend: B images, H x W pixels, C channels (colours, then labels), h x w positions of a map, D channels of a map.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from cacenet_jax.models.cacenet import CACENet, Described
from cacenet_jax.models.pixels import normalise_images


class Scoring(NamedTuple):
    """Inference functions of a network.

    They are cached by network and settings, so each compiles only once.

    Attributes:
        compose: function from variables to the constants of the pair stage; None without a pair stage.
        describe: function from (variables, constants) and uint8 images, shape (B, H, W, image_channels), to embeddings
            and stored terms.
        distance: function from constants, the stored terms of one image and those of n others to n distances; None
            without a pair stage.
    """

    compose: Callable[[Any], Any] | None
    describe: Callable[[Any, Any], Described]
    distance: Callable[[Any, Any, Any], Any] | None


def feature_maps(
    net: CACENet, variables: Any, images_BHWC: UInt8[Array, "B H W C"], flip: bool
) -> Float[Array, "B h w D"]:
    """Compute the feature maps of uint8 images in test mode.

    Args:
        net: the network.
        variables: its parameters and statistics.
        images_BHWC: uint8 images; channels after the first three are ignored.
        flip: average the maps of each image and its mirror image; the latter are flipped back first.
    """
    pixels = normalise_images(images_BHWC[..., :3], net.backbone.pixel_mean, net.backbone.pixel_std)
    arguments: dict[str, Any] = {"method": "mirrored_maps"} if flip else {"method": "maps", "train": False}
    maps_BHWD: Any = net.apply(variables, pixels, **arguments)
    return maps_BHWD


def describe_maps(
    net: CACENet, variables: Any, maps_BHWD: Float[Array, "B h w D"], parts_BN: Array | None = None, unit: bool = True
) -> Described:
    """Compute embeddings, L2-normalised if `unit`, and pair-stage terms from feature maps, in at least float32.

    Matrix products run at the highest precision, because the default on GPUs and TPUs is lower and reported distances
    must be accurate to float32.
    """
    acc_dtype = jnp.promote_types(maps_BHWD.dtype, jnp.float32)
    with jax.default_matmul_precision("highest"):
        described: Any = net.astype(acc_dtype).apply(
            variables, maps_BHWD.astype(acc_dtype), parts_BN, unit=unit, method="describe"
        )
    return described


def constants_of(net: CACENet, variables: Any) -> Any:
    """Compute the constants of the pair stage in at least float32."""
    with jax.default_matmul_precision("highest"):
        return net.astype(jnp.promote_types(net.dtype, jnp.float32)).apply(variables, method="pair_constants")


@functools.lru_cache(maxsize=4)
def scoring(net: CACENet, flip: bool, map_dtype: str, unit: bool = True) -> Scoring:
    """Return the inference functions of a network, which take its variables as an argument.

    Args:
        net: the network; networks with equal fields share the same functions.
        flip: as in `feature_maps`.
        map_dtype: storage type of the terms of the pair stage.
        unit: L2-normalise the embeddings.
    """
    stage = net.pair_stage

    def describe(given: Any, images: jax.Array) -> Described:
        variables, constants = given
        maps = feature_maps(net, variables, images, flip)
        described = describe_maps(net, variables, maps, net.parts(images, *maps.shape[1:3]), unit)
        if stage is None:
            return described
        with jax.default_matmul_precision("highest"):
            return described._replace(terms=stage.store(constants, described.terms, jnp.dtype(map_dtype)))

    if stage is None:
        return Scoring(None, describe, None)

    def distance(constants: Any, one: Any, others: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return stage.distances(constants, one, others)

    return Scoring(jax.jit(functools.partial(constants_of, net)), describe, distance)
