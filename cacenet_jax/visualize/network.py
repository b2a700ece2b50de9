"""Images as a trained network sees them, alone and two together: the numbers behind figures 4 and 5.

Legend: n images, H x W pixels, C channels, h x w positions of a map (N = h w, N and M of two images), D channels of it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.base import PairView
from cacenet_jax.models.scoring import describe_maps, feature_maps

AnyArray = Array | ndarray


class Seen(NamedTuple):
    """Images as the network sees them.

    Attributes:
        maps_nhwD: feature maps, at least float32.
        terms: per-image terms of the pair stage, leading axis n.
    """

    maps_nhwD: Array
    terms: Any


@functools.partial(jax.jit, static_argnums=(0, 3))
def look(net: CACENet, variables: Any, images_nHWC: Array, flip: bool) -> Seen:
    """Compute maps and terms of uint8 images of the network's size and `image_channels`, as retrieval does.

    Args:
        net: a network with a pair stage.
        variables: its parameters and statistics.
        images_nHWC: uint8 images.
        flip: average the maps of an image and its mirror image.
    """
    maps = feature_maps(net, variables, images_nHWC, flip)
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    return Seen(maps, describe_maps(net, variables, maps, net.parts(images_nHWC, *maps.shape[1:3])).terms)


@functools.partial(jax.jit, static_argnums=0)
def compare(net: CACENet, variables: Any, u: Seen, v: Seen) -> PairView:
    """Return what the pair stage shows of a target image and a contextual one (both without leading axis)."""
    with jax.default_matmul_precision("highest"):
        view: Any = net.apply(variables, u.terms, v.terms, u.maps_nhwD, v.maps_nhwD, method="view")
    return view


def cosine(nodes_u_ND: Float[AnyArray, "N D"], nodes_v_MD: Float[AnyArray, "M D"]) -> Float[Array, "N M"]:
    """Compute the cosine of every pair of positions; 0 where one of them is 0."""
    return normalise(jnp.asarray(nodes_u_ND)) @ normalise(jnp.asarray(nodes_v_MD)).T
