"""Computation of the data shown in figures 4 and 5, and of distances, by a trained network.

Legend: n images, H x W pixels, C channels, h x w positions of a map (N = h w; M in a second image), D channels of a
map.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.base import PairView
from cacenet_jax.models.scoring import describe_maps, feature_maps, scoring
from cacenet_jax.retrieval.distances import DISTANCES
from cacenet_jax.retrieval.rankings import mixed_distance
from cacenet_jax.visualize.scores import Scores

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


def distances(
    net: CACENet, variables: Any, images_nHWC: AnyArray, flip: bool, map_dtype: str, distance: str, mix: float
) -> list[Scores]:
    """Compute the distances of the first image to each of the others, by the functions that rank a gallery.

    Args:
        net: a network with a pair stage.
        variables: parameters and batch statistics of the network.
        images_nHWC: as in `look`.
        flip: as in `look`.
        map_dtype: storage type of the terms of the pair stage.
        distance: distance of embeddings, a name in `retrieval.distances.DISTANCES`.
        mix: weight of the pair distance in the mixed distance.
    """
    functions = scoring(net, flip, map_dtype, unit=distance == "cosine")
    if functions.compose is None or functions.distance is None:
        raise ValueError("a network without a pair stage")
    constants = functions.compose(variables)
    described = jax.jit(functions.describe)((variables, constants), images_nHWC)
    embedding_nF = np.asarray(described.embedding)
    individual_1m = DISTANCES[distance](embedding_nF[:1], embedding_nF[1:])
    one, others = (jax.tree.map(operator.itemgetter(part), described.terms) for part in (0, slice(1, None)))
    pair_1m = np.asarray(jax.jit(functions.distance)(constants, one, others))[None]
    mixed_1m = mixed_distance(pair_1m, individual_1m, mix)
    return [Scores(*map(float, row)) for row in zip(individual_1m[0], pair_1m[0], mixed_1m[0])]


def cosine(nodes_u_ND: Float[AnyArray, "N D"], nodes_v_MD: Float[AnyArray, "M D"]) -> Float[Array, "N M"]:
    """Compute the cosine similarity of every pair of feature vectors; 0 if either vector is zero."""
    return normalise(jnp.asarray(nodes_u_ND)) @ normalise(jnp.asarray(nodes_v_MD)).T
