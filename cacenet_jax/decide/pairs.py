"""Distances of labelled pairs, drawn as the evaluation pairs images.

Matching pairs of one camera are left out where cameras are known, because the evaluation leaves them out. Each query is
compared with a few images of its person and with random images of other people.

Legend: n images, Q queries, K images compared with a query, F embedding size, I identities.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cacenet_jax.data.images import ListedImages
from cacenet_jax.decide.labelled import Labelled
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.calibration import KINDS
from cacenet_jax.retrieval.calibration_fit import Pairs
from cacenet_jax.retrieval.compare import HostTerms
from cacenet_jax.retrieval.rankings import mixed_distance
from cacenet_jax.retriever import Retriever

_IMAGES = 6000  # at most
_QUERIES = 1000
_MATCHING = 8  # per query
_OTHERS = 500  # per query; individual distances cost nothing
_SCORED = 64  # of these, compared by the pair stage


class Described(NamedTuple):
    """Labelled images and their features.

    Attributes:
        labelled: the images.
        embedding_nF: embeddings.
        terms: terms of the pair stage; None without one.
    """

    labelled: Labelled
    embedding_nF: Float[np.ndarray, "n F"]
    terms: HostTerms | None


class Drawn(NamedTuple):
    """Pairs of images by index.

    Attributes:
        query_Q: queries.
        candidates_QK: images compared with each query, those of its person first; -1 for none.
    """

    query_Q: Int[np.ndarray, "Q"]
    candidates_QK: Int[np.ndarray, "Q K"]


def describe(reid: Retriever, labelled: Labelled, seed: int = 0) -> Described:
    """Compute the features of the images, or of 6,000 of them, evenly over the identities.

    Raises:
        UserError: an image cannot be read, or there is too little disk space.
    """
    if len(labelled.pids_n) > _IMAGES:
        labelled = labelled.take(np.sort(in_turn(labelled.pids_n, seed)[:_IMAGES]))
    return Described(labelled, *reid.describe(ListedImages(labelled.images, labelled.names)))


def measure(reid: Retriever, described: Described, seed: int = 0) -> dict[str, Pairs]:
    """Compute the distances of labelled pairs for each distance that the network has.

    Args:
        reid: the network.
        described: labelled images.
        seed: seed of the draw.

    Raises:
        UserError: there are no matching pairs, or no images of different people.
    """
    labelled, embedding_nF, terms = described
    drawn = draw(labelled, seed)
    query_QF = embedding_nF[drawn.query_Q].astype(np.float64)
    individual_QK = np.empty(drawn.candidates_QK.shape, np.float32)
    for row, (query_F, candidates_K) in enumerate(zip(query_QF, drawn.candidates_QK)):
        individual_QK[row] = 1 - embedding_nF[candidates_K].astype(np.float64) @ query_F
    pairs = {"individual": _labelled(labelled, drawn, individual_QK)}
    if terms is not None:
        scored = drawn._replace(candidates_QK=drawn.candidates_QK[:, : _MATCHING + _SCORED])
        pair_QK = reid.pair_distances(terms.take(drawn.query_Q), terms, np.maximum(scored.candidates_QK, 0))
        mixed_QK = mixed_distance(pair_QK, individual_QK[:, : pair_QK.shape[1]], reid.mix)
        pairs |= {kind: _labelled(labelled, scored, x) for kind, x in zip(KINDS[1:], (pair_QK, mixed_QK))}
    return pairs


def matches(labelled: Labelled, query: int) -> Bool[np.ndarray, "n"]:
    """Return which images make a matching pair with a query."""
    same_n = labelled.pids_n == labelled.pids_n[query]
    same_n[query] = False
    if labelled.is_cross_camera and labelled.camids_n[query] >= 0:
        same_n &= labelled.camids_n != labelled.camids_n[query]
    return same_n


def in_turn(pids_n: Int[np.ndarray, "n"], seed: int) -> Int[np.ndarray, "n"]:
    """Return a random order of the images in which identities take turns, so that its start is even over them."""
    shuffled = np.random.default_rng(seed).permutation(len(pids_n))
    by_identity = shuffled[np.argsort(pids_n[shuffled], kind="stable")]
    _, start, count = np.unique(pids_n[by_identity], return_index=True, return_counts=True)
    turn = np.arange(len(pids_n)) - np.repeat(start, count)
    return by_identity[np.argsort(turn, kind="stable")]


def draw(labelled: Labelled, seed: int = 0) -> Drawn:
    """Draw matching and other pairs.

    Raises:
        UserError: there are none of one kind.
    """
    random = np.random.default_rng(seed)
    queries, rows = [], []
    for query in in_turn(labelled.pids_n, seed).tolist():
        own = np.flatnonzero(matches(labelled, query))
        other = np.flatnonzero(labelled.pids_n != labelled.pids_n[query])
        if len(own) and len(other):
            row_K = np.full(_MATCHING + min(_OTHERS, len(labelled.pids_n)), -1)
            some = random.permutation(own)[:_MATCHING]
            row_K[: len(some)] = some
            some = random.permutation(other)[:_OTHERS]
            row_K[_MATCHING : _MATCHING + len(some)] = some
            queries.append(query)
            rows.append(row_K)
        if len(queries) == _QUERIES:
            break
    if not queries:
        cameras = " taken by two cameras" if labelled.is_cross_camera else ""
        raise UserError(
            f"{labelled.name}: found {len(np.unique(labelled.pids_n))} people and none with two images{cameras} beside "
            "images of others, expected matching pairs to learn from; add labelled images"
        )
    return Drawn(np.array(queries), np.stack(rows))


def _labelled(labelled: Labelled, drawn: Drawn, distance_QK: np.ndarray) -> Pairs:
    """Return the drawn pairs as one list."""
    kept_QK = drawn.candidates_QK >= 0
    first_QK = np.broadcast_to(labelled.pids_n[drawn.query_Q][:, None], kept_QK.shape)
    second_QK = labelled.pids_n[drawn.candidates_QK]
    same_QK = first_QK == second_QK
    return Pairs(*(x[kept_QK] for x in (distance_QK, same_QK, first_QK, second_QK)))
