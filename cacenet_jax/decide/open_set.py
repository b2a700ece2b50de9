"""Queries of absent people: the share that a search answers with "unknown".

Each query is searched twice among the images, as `Retriever.rank` does: with the images of its person, and without them. The
answer is the best image if its distance lies below a threshold.

Legend: n images, Q queries.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cacenet_jax.decide.pairs import Described, in_turn, matches
from cacenet_jax.retrieval.rankings import mixed_distance
from cacenet_jax.retriever import Retriever

_QUERIES = 500  # at most


class Searches(NamedTuple):
    """Best distances of searches.

    Attributes:
        absent_Q: smallest distance among images of other people.
        present_Q: smallest distance among all images, those of the query's person included.
        right_Q: True if that image shows the query's person.
        num_images: number of images that are searched.
    """

    absent_Q: Float[np.ndarray, "Q"]
    present_Q: Float[np.ndarray, "Q"]
    right_Q: Bool[np.ndarray, "Q"]
    num_images: int

    def unknown(self, threshold: float) -> float:
        """Return the share of queries of absent people that are answered with "unknown"."""
        return float((self.absent_Q >= threshold).mean())

    def found_right(self, threshold: float) -> float:
        """Return the share of queries of people who are there that are answered with an image of them."""
        return float((self.right_Q & (self.present_Q < threshold)).mean())


def search(reid: Retriever, described: Described, chosen_n: Bool[np.ndarray, "n"], seed: int = 0) -> Searches | None:
    """Search some of the images for some of them, by the mixed distance or, without a pair stage, the individual one.

    Args:
        reid: the network.
        described: labelled images.
        chosen_n: images to search, and to take queries from.
        seed: seed of the choice of queries.

    Returns:
        Best distances; None if no query has both a match and other people.
    """
    rows = np.flatnonzero(chosen_n)
    labelled, embedding_mF = described.labelled.take(rows), described.embedding_nF[rows].astype(np.float64)
    top_k = max(reid.top_k, 1)
    queries: list[int] = []
    candidates, shown = [], []
    for query in in_turn(labelled.pids_n, seed).tolist():
        own_m, same_m = matches(labelled, query), labelled.pids_n == labelled.pids_n[query]
        if len(queries) == _QUERIES or not own_m.any() or same_m.all():
            continue
        distance_m = 1 - embedding_mF @ embedding_mF[query]
        others, together = (_nearest(distance_m, allowed_m, top_k) for allowed_m in (~same_m, ~same_m | own_m))
        queries.append(query)
        candidates.append(np.resize(np.concatenate([others, together]), 2 * top_k))
        shown.append((others, together, distance_m))
    if not queries:
        return None
    query_Q, candidates_QK = np.array(queries), np.stack(candidates)
    distance_QK = np.stack([distance_m[row_K] for (*_, distance_m), row_K in zip(shown, candidates_QK)])
    if described.terms is not None:
        terms = described.terms
        pair_QK = reid.pair_distances(terms.take(rows[query_Q]), terms, rows[candidates_QK])
        distance_QK = mixed_distance(pair_QK, distance_QK.astype(np.float32), reid.mix)
    absent, present, right = [], [], []
    for query, row_K, distance_K, (others, together, _) in zip(queries, candidates_QK, distance_QK, shown):
        distance_of = dict(zip(row_K.tolist(), distance_K.tolist()))
        best_image = min(together.tolist(), key=distance_of.__getitem__)
        absent.append(min(distance_of[i] for i in others.tolist()))
        present.append(distance_of[best_image])
        right.append(labelled.pids_n[best_image] == labelled.pids_n[query])
    return Searches(np.array(absent), np.array(present), np.array(right), len(rows))


def _nearest(distance_m: np.ndarray, allowed_m: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the nearest images among some."""
    return np.flatnonzero(allowed_m)[np.argsort(distance_m[allowed_m], kind="stable")[:count]]
