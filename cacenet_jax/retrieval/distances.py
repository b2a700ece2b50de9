"""Distances between the embeddings of queries and gallery images, as they are or re-ranked.

Legend: Q queries, G gallery images, F embedding size.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from cacenet_jax.retrieval.query_expansion import query_expansion
from cacenet_jax.retrieval.rerank import k_reciprocal_features

_CHUNK_ROWS = 1024  # gallery rows that are converted to float64 at a time, small enough for a cache
_EXPANSION = (5, 3.0)  # neighbours and exponent of query expansion

Distance = Callable[[Float[np.ndarray, "Q F"], Float[np.ndarray, "G F"]], Float[np.ndarray, "Q G"]]


def cosine_distance(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]
) -> Float[np.ndarray, "Q G"]:
    """Compute 1 - cosine similarity of L2-normalised embeddings in float64, rounded to the dtype of the queries.

    In float32, identical images could get different distances, because BLAS sums in a different order at the edges of a
    block. The gallery is converted in chunks, which needs little memory.
    """
    query_QF64 = query_QF.astype(np.float64)
    distance_QG = np.empty((len(query_QF), len(gallery_GF)), query_QF.dtype)
    for start in range(0, len(gallery_GF), _CHUNK_ROWS):
        columns = slice(start, start + _CHUNK_ROWS)
        distance_QC = distance_QG[:, columns]
        distance_QC[:] = query_QF64 @ gallery_GF[columns].astype(np.float64, copy=False).T
        np.subtract(1, distance_QC, out=distance_QC)
    return distance_QG


def euclidean_distance(
    query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]
) -> Float[np.ndarray, "Q G"]:
    """Compute Euclidean distances in float64, rounded to the dtype of the queries.

    For L2-normalised embeddings the ranking is that of `cosine_distance`.
    """
    query_QF64 = query_QF.astype(np.float64)
    square_Q1 = np.square(query_QF64).sum(axis=1, keepdims=True)
    distance_QG = np.empty((len(query_QF), len(gallery_GF)), query_QF.dtype)
    for start in range(0, len(gallery_GF), _CHUNK_ROWS):
        columns = slice(start, start + _CHUNK_ROWS)
        gallery_CF64 = gallery_GF[columns].astype(np.float64, copy=False)
        square_QC = query_QF64 @ (-2 * gallery_CF64.T)
        square_QC += square_Q1
        square_QC += np.square(gallery_CF64).sum(axis=1)
        distance_QG[:, columns] = np.sqrt(np.maximum(square_QC, 0, out=square_QC), out=square_QC)
    return distance_QG


DISTANCES: Mapping[str, Distance] = MappingProxyType({"cosine": cosine_distance, "euclidean": euclidean_distance})


def _expanded(query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]) -> Float[np.ndarray, "Q G"]:
    """Compute the cosine distances of expanded queries."""
    unit_GF = gallery_GF / np.maximum(np.linalg.norm(gallery_GF, axis=1, keepdims=True), 1e-12)
    return cosine_distance(query_expansion(query_QF, gallery_GF, *_EXPANSION), unit_GF)


# Re-ranked distances of all queries to all gallery images, with the published default parameters.
RERANKINGS: Mapping[str, Distance] = MappingProxyType(
    {"k_reciprocal": k_reciprocal_features, "query_expansion": _expanded}
)


def rerank(
    method: str, query_QF: Float[np.ndarray, "Q F"], gallery_GF: Float[np.ndarray, "G F"]
) -> tuple[Float[np.ndarray, "Q G"], dict[str, float]]:
    """Compute re-ranked distances, and what they cost.

    Args:
        method: name in `RERANKINGS`.
        query_QF: embeddings of the queries.
        gallery_GF: embeddings of the gallery images.

    Returns:
        Distances, and a dictionary with the time in seconds ("rerank_seconds") and the peak memory of this process so
        far in GiB ("peak_gib").
    """
    begin = time.monotonic()
    distance_QG = RERANKINGS[method](query_QF, gallery_GF)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return distance_QG, {"rerank_seconds": time.monotonic() - begin, "peak_gib": peak / 2**30}
