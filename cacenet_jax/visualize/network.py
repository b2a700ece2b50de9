"""Computation of the data shown in figures 4 and 5 by a trained network.

Legend: n images, H x W pixels, C channels, h x w positions of a map (N = h w; M in a second image), D channels of a
map.
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
    """Feature maps of images, and the per-image terms that the pair stage computes from them.

    Attributes:
        maps_nhwD: feature maps, in at least float32.
        terms: per-image terms of the pair stage, with leading axis n.
    """

    maps_nhwD: Array
    terms: Any


@functools.partial(jax.jit, static_argnums=(0, 3))
def look(net: CACENet, variables: Any, images_nHWC: Array, flip: bool) -> Seen:
    """Compute the maps and terms of images as in retrieval.

    Args:
        net: a network with a pair stage.
        variables: parameters and batch statistics of the network.
        images_nHWC: uint8 images of the network's input size, with `image_channels` channels.
        flip: average the maps of each image and its mirror image.
    """
    maps = feature_maps(net, variables, images_nHWC, flip)
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    return Seen(maps, describe_maps(net, variables, maps, net.parts(images_nHWC, *maps.shape[1:3])).terms)


@functools.partial(jax.jit, static_argnums=0)
def compare(net: CACENet, variables: Any, u: Seen, v: Seen) -> PairView:
    """Compute the visualisation data of target image u in the context of image v, both without a leading axis."""
    with jax.default_matmul_precision("highest"):
        view: Any = net.apply(variables, u.terms, v.terms, u.maps_nhwD, v.maps_nhwD, method="view")
    return view


def cosine(nodes_u_ND: Float[AnyArray, "N D"], nodes_v_MD: Float[AnyArray, "M D"]) -> Float[Array, "N M"]:
    """Compute the cosine similarity of every pair of feature vectors; 0 if either vector is zero."""
    return normalise(jnp.asarray(nodes_u_ND)) @ normalise(jnp.asarray(nodes_v_MD)).T
