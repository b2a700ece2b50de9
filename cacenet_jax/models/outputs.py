"""What the network gives: the terms of an image, a grid of pairs, what retrieval keeps.

Legend: B images, R x C pairs of target images u (rows) and contextual images v (columns), F embedding size, I training
identities.
"""

from typing import NamedTuple

from jaxtyping import Array

from cacenet_jax.models.heads import Embedded
from cacenet_jax.models.pair_stages.conditional.clues import Clues
from cacenet_jax.models.pair_stages.conditional.pair import ImageTerms
from cacenet_jax.models.pair_stages.evidence import Regions
from cacenet_jax.models.pair_stages.keypoints import KeyPoints
from cacenet_jax.models.pair_stages.released import BottleneckTerms


class PairTerms(NamedTuple):
    """What the pair stage needs of one image; computed once per image.

    Attributes:
        graph: for the graph convolution; None in a model without it.
        clues: for the clue distance; None in a model without it.
        points: for the key-point distance; None in a model without it.
        regions: for local evidence; None in a model without it.
        bottleneck: for the graph of bottlenecks; None in a model without it.
    """

    graph: ImageTerms | None
    clues: Clues | None
    points: KeyPoints | None = None
    regions: Regions | None = None
    bottleneck: BottleneckTerms | None = None


class PairGrid(NamedTuple):
    """What a grid of pairs gives, R target images x C contextual images; None for what a model does not have.

    Attributes:
        conditional: f(u|v) and its logits, (R, C, F) and (R, C, I).
        clues: clue distance of each pair, (R, C).
        points: key-point distance of each pair, (R, C).
        positive_intra: share of positive affinities within images, scalar.
        positive_cross: share of positive affinities across images, scalar.
        degree: mean degree of a node in a pair's graph, scalar.
        evidence: evidence(u|v) of each pair, (R, C).
    """

    conditional: Embedded | None
    clues: Array | None
    points: Array | None
    positive_intra: Array | None
    positive_cross: Array | None
    degree: Array | None
    evidence: Array | None = None


class Described(NamedTuple):
    """What retrieval keeps of an image.

    Attributes:
        embedding: L2-normalised f(I), (B, F).
        terms: per-image terms of the pair stage, leading axis B; None in a model without the pair stage.
    """

    embedding: Array
    terms: PairTerms | None
