"""The pair stage at test time: what is constant is composed once, what belongs to an image is stored once.

In test mode everything after the graph is affine, so that Theta, the encoder and its batch norm are one D x F matrix, and
that matrix may act on the nodes of an image before any pair is formed:

    f(u|v) = own_u + (r_u * (S_u r_u))^T Z_u + (r_v * (T_uv^T r_u))^T Z_v,      Z = -+ X Theta_1 E / N

with E the encoder and the scale of its norm, and own_u = mean_u X Theta_0 E + bias. A pair then costs its block T_uv,
matrix-vector products with N x N and N x F, and nothing with D or D x D in it. The maps themselves are not kept: T_uv
is made from keys, which carry the square root of |w'| so that both images of a pair store the same thing, rounded once.
A network without a graph convolution stores its key points, or the regions of local evidence, instead; one with the graph
of bottlenecks its map and both bottlenecks, because its pooling is not linear.

Legend: u one image, v the C images that it is compared with, N and M nodes, D channels, E channels of keys, F embedding
size, B images.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cacenet_jax.models.cacenet import CACENet, Described
from cacenet_jax.models.graph import inverse_sqrt_degree, neighbour_sign
from cacenet_jax.models.heads import normalise
from cacenet_jax.models.pair_stages.conditional.alignment import LEARNED, connect
from cacenet_jax.models.pair_stages.conditional.clues import Clues, clue_distance
from cacenet_jax.models.pair_stages.evidence import Judge, Regions, evidence_distance
from cacenet_jax.models.pair_stages.keypoints import KeyPoints, key_point_distance
from cacenet_jax.models.pair_stages.released import BottleneckTerms, Encoder, bottleneck_maps
from cacenet_jax.models.pooling import generalised_mean

_AT_ONCE = 8  # candidates whose maps exist at a time
_EPSILON = 1e-5  # of the batch norm in heads.EmbeddingHead


class PairConstants(NamedTuple):
    """What the pair stage of a trained network is, at least float32.

    Attributes:
        own_DF: Theta, encoder and scale of the batch norm, for the mean of the map.
        near_DF: the same for the mean neighbour, with the sign of the convolution; the same matrix where tied.
        bias_F: what the batch norm adds.
        root_E: sqrt |w'|, which each image's keys are stored with; one number where w' is not learned.
        sign_E: the sign of w', -1, 0 or 1; one number where w' is not learned.
        offset: added to every cross affinity before the ReLU: minus the learned threshold, 0 without one.
    """

    own_DF: Array
    near_DF: Array
    bias_F: Array
    root_E: Array
    sign_E: Array
    offset: Array


class PointConstants(NamedTuple):
    """What the pair stage of a trained network without a graph convolution is.

    Attributes:
        weight_E: w', at least float32.
    """

    weight_E: Array


class BottleneckConstants(NamedTuple):
    """What the pair stage of a trained network with the graph of bottlenecks is, at least float32.

    Attributes:
        encoder: W_o, the exponent, and the 1x1 convolution with the scale of the batch norm.
        bias_F: what the batch norm adds.
    """

    encoder: Encoder
    bias_F: Array


class StoredTerms(NamedTuple):
    """What is kept of an image to compare it with others.

    Attributes:
        keys_NE: what cross affinities are made from, in the storage type; never rounded for a top-K selection.
        values_NF: the nodes' contributions to f, in the storage type.
        own_F: the image's own share of f, at least float32.
        intra_NN: S, in the storage type.
        degree_N: row sums of S before it was rounded, at least float32.
        clues: regions for the clue distance, directions in the storage type; None in a model without it.
    """

    keys_NE: Array
    values_NF: Array
    own_F: Array
    intra_NN: Array
    degree_N: Array
    clues: Clues | None


Constants = PairConstants | PointConstants | BottleneckConstants | Judge
Terms = StoredTerms | KeyPoints | Regions | BottleneckTerms


def compose(net: CACENet, variables: Any) -> Constants:
    """The constants of a network with a pair stage; once for each state of it."""
    if net.pair_score == "evidence":
        return net.apply(variables, method="judge")
    if net.residual:
        return _compose_bottleneck(net, variables)
    # A weight that is not learned is one number for all channels, and one for that of the threshold.
    weight_E = net.apply(variables, "cross", jnp.ones(1 + _has_threshold(net)), method="weight")
    weight_E = weight_E.astype(jnp.promote_types(weight_E.dtype, jnp.float32))
    if net.pair_score == "keypoints":
        return PointConstants(weight_E)
    head, stats = variables["params"]["conditional_head"], variables["batch_stats"]["conditional_head"]["head"]["bn"]
    wide = jnp.promote_types(jnp.asarray(head["theta"]).dtype, jnp.float32)
    norm, conv = head["head"]["bn"], jnp.asarray(head["head"]["conv"]["kernel"], wide)
    scale_F = norm["scale"] / jnp.sqrt(stats["var"] + _EPSILON)
    encoder_DF = conv * scale_F
    with jax.default_matmul_precision("highest"):
        own_DF = jnp.asarray(head["theta"], wide) @ encoder_DF
        near_DF = own_DF if net.filters == "tied" else jnp.asarray(head["theta_1"], wide) @ encoder_DF
    channels = len(weight_E) - _has_threshold(net)
    weight_E, offset = weight_E[:channels], weight_E[channels:].sum()
    return PairConstants(
        own_DF,
        neighbour_sign(net.kind) * near_DF,
        norm["bias"] - stats["mean"] * scale_F,
        jnp.sqrt(jnp.abs(weight_E)),
        jnp.sign(weight_E),
        offset,
    )


def _compose_bottleneck(net: CACENet, variables: Any) -> BottleneckConstants:
    encoder: Encoder = net.clone(dtype=jnp.promote_types(net.dtype, jnp.float32)).apply(
        variables, method="pair_encoder"
    )
    name = "individual_head" if net.shared_encoder else "conditional_head"
    norm, stats = variables["params"][name]["bn"], variables["batch_stats"][name]["bn"]
    scale_F = norm["scale"] / jnp.sqrt(stats["var"] + _EPSILON)
    encoder = encoder._replace(kernel_DF=encoder.kernel_DF * scale_F)
    return BottleneckConstants(encoder, norm["bias"] - stats["mean"] * scale_F)


def _has_threshold(net: CACENet) -> bool:
    """Whether the last channel of the keys is the constant one of a learned threshold."""
    return net.keys == "correlation" and net.alignment in LEARNED


def describe(
    net: CACENet,
    variables: Any,
    constants: Constants | None,
    maps_BHWD: Float[Array, "B h w D"],
    dtype: Any = jnp.bfloat16,
    parts_BN: Int[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B F"], Terms | None]:
    """What retrieval keeps of images: f(I), L2-normalised, and the terms of the pair stage.

    Args:
        net: the network.
        variables: its parameters and statistics.
        constants: what `compose` gives; None for a network without the pair stage.
        maps_BHWD: feature maps, computed on in at least float32 whatever the network's type.
        dtype: storage type of keys, values, affinities, clues, key points, regions and maps.
        parts_BN: body part of each position, for the semantic alignment.

    Returns:
        Embeddings, at least float32, and terms with leading axis B; None without the pair stage.
    """
    wide = jnp.promote_types(maps_BHWD.dtype, jnp.float32)
    maps_BHWD = maps_BHWD.astype(wide)
    with jax.default_matmul_precision("highest"):  # distances are reported; GPUs and TPUs round products by default
        found: Described = net.clone(dtype=wide).apply(variables, maps_BHWD, parts_BN, method="describe")
        if found.terms is None or constants is None:
            return found.embedding, None
        graph, clues, points, regions, bottleneck = found.terms
        if bottleneck is not None:
            stored: BottleneckTerms = jax.tree.map(lambda x: x.astype(dtype), bottleneck)
            return found.embedding, stored._replace(degree_N=bottleneck.degree_N)
        if graph is None:
            return found.embedding, jax.tree.map(lambda x: x.astype(dtype), regions if points is None else points)
        keys_BNE = graph.nodes_ND if graph.keys_NE is None else graph.keys_NE
        keys_BNE = keys_BNE[..., :-1] if _has_threshold(net) else keys_BNE
        values_BNF = (graph.nodes_ND @ (constants.near_DF / graph.nodes_ND.shape[1])).astype(dtype)
        own_BF = graph.nodes_ND.mean(axis=1) @ constants.own_DF + constants.bias_F
    if clues is not None:
        clues = Clues(clues.direction_NF.astype(dtype), clues.salience_N)
    keys_BNE = (keys_BNE * constants.root_E).astype(wide if net.nearest else dtype)
    return found.embedding, StoredTerms(
        keys_BNE, values_BNF, own_BF, graph.intra_NN.astype(dtype), graph.degree_N, clues
    )


def group_distance(
    constants: Constants,
    u: Terms,
    v: Terms,
    clue_weight: float = 0.0,
    nearest: int = 0,
) -> Float[Array, "C"]:
    """Distances of one image and C others, each looked at together with it; `CACENet.pair_distance` of every pair.

    Symmetric in the two images up to rounding, so that either may be the one that the others share. All affinities
    come from one product of (C N) x D and D x N.

    Args:
        constants: what `compose` gives.
        u: terms of one image.
        v: terms of the others, leading axis C.
        clue_weight: share of the clue distance.
        nearest: as in `alignment.connect`.

    Returns:
        Distances as in `CACENet.pair_distance`, at least float32. Products of bfloat16 keys are exact and summed in float32.
    """
    if isinstance(constants, Judge):
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda v: evidence_distance(constants, u, v))(v)
    if isinstance(constants, BottleneckConstants):
        with jax.default_matmul_precision("highest"):
            one = lambda v: _bottleneck_distance(constants, u, v)
            if not isinstance(v.degree_N.shape[0], int):  # an export for any number of candidates
                return jax.vmap(one)(v)
            return jax.lax.map(one, v, batch_size=_AT_ONCE)
    if isinstance(constants, PointConstants):
        with jax.default_matmul_precision("highest"):
            one = lambda v: key_point_distance(u, v, constants.weight_E).distance
            return jax.vmap(one)(v)
    wide = u.degree_N.dtype
    signed_NE = u.keys_NE * constants.sign_E.astype(u.keys_NE.dtype)  # exact in any type
    with jax.default_matmul_precision("highest"):
        scores_CMN = jnp.einsum("cme,ne->cmn", v.keys_NE, signed_NE, preferred_element_type=wide)
        cross_CMN = connect(scores_CMN + constants.offset, nearest)
        root_u_CN = inverse_sqrt_degree(u.degree_N + cross_CMN.sum(axis=1))
        root_v_CM = inverse_sqrt_degree(v.degree_N + cross_CMN.sum(axis=2))
        own_u_CN = root_u_CN * (root_u_CN @ u.intra_NN.astype(wide))
        # A product and a sum where both factors belong to the pair: XLA fuses them, and no widened copy is stored.
        own_v_CM = root_v_CM * (root_v_CM[:, :, None] * v.intra_NN).sum(axis=1)
        cross_v_CM = root_v_CM * (root_u_CN[:, None, :] * cross_CMN).sum(axis=2)
        cross_u_CN = root_u_CN * (root_v_CM[:, :, None] * cross_CMN).sum(axis=1)
        values_u_NF = u.values_NF.astype(wide)
        given_v_CF = u.own_F + own_u_CN @ values_u_NF + (cross_v_CM[:, :, None] * v.values_NF).sum(axis=1)
        given_u_CF = v.own_F + cross_u_CN @ values_u_NF + (own_v_CM[:, :, None] * v.values_NF).sum(axis=1)
        distance_C = 1 - (normalise(given_v_CF) * normalise(given_u_CF)).sum(axis=-1)
        if u.clues is None:
            return distance_C
        clues_C = jax.vmap(clue_distance, (None, 0))(u.clues, v.clues)
        return (1 - clue_weight) * distance_C + clue_weight * clues_C


def _bottleneck_distance(constants: BottleneckConstants, u: BottleneckTerms, v: BottleneckTerms) -> Float[Array, ""]:
    """`CACENet.pair_distance` of two images' stored terms."""
    maps = bottleneck_maps(constants.encoder.out_ED, u, v)
    pooled_2D = jnp.stack([generalised_mean(map_ND, constants.encoder.exponent) for map_ND in maps])
    embedding_2F = normalise(pooled_2D @ constants.encoder.kernel_DF + constants.bias_F)
    return 1 - embedding_2F[0] @ embedding_2F[1]
