"""What a trained network makes of a few images, and of two of them together: the numbers behind figures 4 and 5.

Legend: n images, H x W pixels, C channels, h x w positions of a map (N = h w, N and M of two images), D channels of it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from cacenet_jax.models.attention import affinity_scores
from cacenet_jax.models.cacenet import CACENet, PairTerms
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.conditional.alignment import connect
from cacenet_jax.models.pair_stages.conditional.pair import conditional_maps
from cacenet_jax.models.pair_stages.evidence import region_alignment
from cacenet_jax.models.pair_stages.released import bottleneck_maps, cross_block
from cacenet_jax.models.scoring import feature_maps

AnyArray = Array | ndarray


class Seen(NamedTuple):
    """Images as the network sees them.

    Attributes:
        maps_nhwD: feature maps, at least float32.
        terms: per-image terms of the pair stage, leading axis n.
    """

    maps_nhwD: Array
    terms: PairTerms


class Pair(NamedTuple):
    """Two images as the network sees them together, u the target and v the contextual image.

    Attributes:
        cross_NM: T_uv, the cross block of the graph that the network's alignment makes; of local evidence, the shares in
            which v shows the regions of u.
        norm_N: L2 norm of each position of the conditional map of u given v; None without a graph convolution.
    """

    cross_NM: Array
    norm_N: Array | None


@functools.partial(jax.jit, static_argnums=(0, 3))
def look(net: CACENet, variables: Any, images_nHWC: Array, flip: bool) -> Seen:
    """Maps and terms of uint8 images of the network's size and `image_channels`, as retrieval computes them.

    Args:
        net: a network with the pair stage.
        variables: its parameters and statistics.
        images_nHWC: uint8 images.
        flip: config.eval.flip.
    """
    maps = feature_maps(net, variables, images_nHWC, flip)
    wide = jnp.promote_types(maps.dtype, jnp.float32)
    maps = maps.astype(wide)
    parts = net.parts(images_nHWC, *maps.shape[1:3])
    with jax.default_matmul_precision("highest"):
        terms = net.clone(dtype=wide).apply(variables, maps, parts, train=False, method="terms")
    return Seen(maps, terms)


@functools.partial(jax.jit, static_argnums=0)
def compare(net: CACENet, variables: Any, u: PairTerms, v: PairTerms) -> Pair:
    """Two images together, from the terms of each (without leading axis).

    The conditional map is the network's own: (I -+ R A R) X Theta, with untied filters X Theta_0 -+ R A R X Theta_1, with
    residual ones X + R (D - A) R G W_o.
    """
    with jax.default_matmul_precision("highest"):
        if u.regions is not None and v.regions is not None:
            judge = net.apply(variables, method="judge")
            return Pair(region_alignment(judge, u.regions, v.regions), None)
        if u.bottleneck is not None and v.bottleneck is not None:
            out_ED = net.apply(variables, method="pair_encoder").out_ED
            map_ND = bottleneck_maps(out_ED, u.bottleneck, v.bottleneck)[0]
            return Pair(cross_block(u.bottleneck, v.bottleneck), jnp.linalg.norm(map_ND, axis=-1))
        keys_u, keys_v = (_keys(terms) for terms in (u, v))
        weight_E = net.apply(variables, "cross", keys_u, method="weight")
        cross_NM = connect(affinity_scores(keys_u, keys_v, weight_E), net.nearest)
        if u.graph is None or v.graph is None:
            return Pair(cross_NM, None)
        own_ND = u.graph.nodes_ND
        near_ND = conditional_maps(u.graph, v.graph, weight_E, net.kind, net.nearest)[0] - own_ND
        head = variables["params"]["conditional_head"]
        map_ND = own_ND @ head["theta"] + near_ND @ head["theta" if net.filters == "tied" else "theta_1"]
        return Pair(cross_NM, jnp.linalg.norm(map_ND, axis=-1))


def _keys(terms: PairTerms) -> Array:
    if terms.points is not None:
        return terms.points.keys_NE
    return terms.graph.nodes_ND if terms.graph.keys_NE is None else terms.graph.keys_NE


def cosine(nodes_u_ND: Float[AnyArray, "N D"], nodes_v_MD: Float[AnyArray, "M D"]) -> Float[Array, "N M"]:
    """Cosine of every pair of positions; 0 where one of them is 0."""
    return normalise(jnp.asarray(nodes_u_ND)) @ normalise(jnp.asarray(nodes_v_MD)).T
