"""Training-free k-reciprocal re-ranking in NumPy, with bounded memory.

Axes: Q queries, G gallery images, A = Q + G images in total, B images in a block, K nearest neighbours, H of them
used for expansion, F feature size.

The A x A distances are computed in blocks of rows. The encoding V (see `k_reciprocal`) is dense in the authors' code.
Here it is a sparse matrix with about a hundred entries per row.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Real

from cacenet_jax.distributed.progress import Progress, track
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.match_ranks import nearest_indices

Array = np.ndarray | jax.Array

_BLOCK_ELEMENTS = 2**22  # number of elements in a temporary block


class _Distances(NamedTuple):
    """Squared distances between all images, queries first, computed on demand.

    Attributes:
        num_query: Q.
        num_all: A.
        dtype: dtype of the distances.
        block: function from (start, stop) to the squared distances between images start .. stop - 1 and all images, as
            a new array of shape (stop - start, A).
        pairs: function from two arrays of N image indices to the squared distances of the N pairs.
    """

    num_query: int
    num_all: int
    dtype: np.dtype
    block: Callable[[int, int], np.ndarray]
    pairs: Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Sparse(NamedTuple):
    """Sparse matrix in compressed sparse row format.

    The entries of row i are `values[start[i]:start[i + 1]]`, in columns `columns[start[i]:start[i + 1]]`, which ascend.
    """

    start: np.ndarray
    columns: np.ndarray
    values: np.ndarray


# The axis names differ between arrays, so sizes are checked by the functions, whose error messages name both sides.
def k_reciprocal(
    distance_QG: Real[Array, "Q G"],
    distance_QQ: Real[Array, "Q1 Q2"],
    distance_GG: Real[Array, "G1 G2"],
    k1: int = 20,
    k2: int = 6,
    lambda_value: float | int = 0.3,
) -> Float[np.ndarray, "Q G"]:
    """Re-rank by the overlap of k-reciprocal neighbourhoods.

    d* = (1 - lambda) d_J + lambda d,  d_J(q, g) = 1 - sum_c min(V_qc, V_gc) / sum_c max(V_qc, V_gc),
    where d(i, j) is the squared distance divided by the largest squared distance of image i. V_ic is exp(-d(i, c)) if
    c is in the expanded reciprocal neighbourhood of i, and 0 otherwise. Each row of V is normalised to sum to 1, then
    averaged over the k2 nearest neighbours of i (including i).

    Args:
        distance_QG: Euclidean distances (not squared) from queries to gallery images.
        distance_QQ: distances between queries, shape (Q, Q).
        distance_GG: distances between gallery images, shape (G, G).
        k1: number of nearest neighbours, excluding the image itself, from which the reciprocal ones are selected. The
            expansion uses half as many.
        k2: number of neighbours whose encodings are averaged; 1 disables averaging.
        lambda_value: weight of the original distance, from 0 (only the Jaccard distance) to 1.

    Returns:
        Re-ranked distances, float64 if any of the three matrices is float64, float32 otherwise.

    Raises:
        UserError: sizes are inconsistent, distances are not finite, k1 or k2 is below 1, lambda is outside [0, 1], or
            there are no queries or no gallery images.

    Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, following the
        authors' Python code (k1 + 1 neighbours, division by the column maximum, expansion at an overlap above two
        thirds).
    """
    qg, qq, gg = np.asarray(distance_QG), np.asarray(distance_QQ), np.asarray(distance_GG)
    if qg.ndim != 2:
        raise UserError(f"distance_QG has shape {qg.shape}; expected two axes, (queries, gallery images)")
    num_query, num_gallery = qg.shape
    for name, matrix, size in (("distance_QQ", qq, num_query), ("distance_GG", gg, num_gallery)):
        if matrix.shape != (size, size):
            raise UserError(
                f"{name} has shape {matrix.shape}, distance_QG has shape {qg.shape}: expected {(size, size)}"
            )
    dtype = np.result_type(qg, qq, gg, np.float32)
    num_all = num_query + num_gallery

    def block(start: int, stop: int) -> np.ndarray:
        # Read columns, as in the authors' code; they equal the rows only if the matrices are exactly symmetric.
        out_BA = np.empty((stop - start, num_all), dtype)
        split = min(max(num_query, start), stop)
        queries, gallery = slice(start, split), slice(split - num_query, stop - num_query)
        if split > start:
            out_BA[: split - start, :num_query] = qq[:, queries].T
            out_BA[: split - start, num_query:] = qg[queries]
        if stop > split:
            out_BA[split - start :, :num_query] = qg[:, gallery].T
            out_BA[split - start :, num_query:] = gg[:, gallery].T
        return np.square(out_BA, out=out_BA)

    def pairs(i_N: np.ndarray, j_N: np.ndarray) -> np.ndarray:
        out_N = np.empty(len(i_N), dtype)
        i_query_N, j_query_N = i_N < num_query, j_N < num_query
        i_gallery, j_gallery = i_N - num_query, j_N - num_query
        for part_N, matrix, row, column in (
            (i_query_N & j_query_N, qq, j_N, i_N),
            (i_query_N & ~j_query_N, qg, i_N, j_gallery),
            (~i_query_N & j_query_N, qg, j_N, i_gallery),
            (~i_query_N & ~j_query_N, gg, j_gallery, i_gallery),
        ):
            out_N[part_N] = matrix[row[part_N], column[part_N]]
        return np.square(out_N)

    return _re_rank(_Distances(num_query, num_all, dtype, block, pairs), k1, k2, lambda_value)


def k_reciprocal_features(
    query_QF: Float[Array, "Q F1"],
    gallery_GF: Float[Array, "G F2"],
    k1: int = 20,
    k2: int = 6,
    lambda_value: float | int = 0.3,
) -> Float[np.ndarray, "Q G"]:
    """Re-rank as in `k_reciprocal`, computing the Euclidean distances between features in blocks.

    The matrix of distances between gallery images (27 GB for MSMT17) is never stored.

    Args:
        query_QF: query features, used without normalisation.
        gallery_GF: gallery features, used without normalisation.
        k1: as in `k_reciprocal`.
        k2: as in `k_reciprocal`.
        lambda_value: as in `k_reciprocal`.

    Returns:
        Re-ranked distances, float64 if the query or gallery features are float64, float32 otherwise.

    Raises:
        UserError: as in `k_reciprocal`, or features are not finite.
    """
    query_QF, gallery_GF = checked_features(query_QF, gallery_GF)
    all_AF = np.concatenate([query_QF, gallery_GF])
    square_A = np.square(all_AF).sum(axis=1)

    def block(start: int, stop: int) -> np.ndarray:
        out_BA = (-2 * all_AF[start:stop]) @ all_AF.T
        out_BA += square_A[start:stop, None]
        out_BA += square_A
        np.maximum(out_BA, 0, out=out_BA)
        out_BA[np.arange(stop - start), np.arange(start, stop)] = 0
        return out_BA

    def pairs(i_N: np.ndarray, j_N: np.ndarray) -> np.ndarray:
        return np.square(all_AF[i_N] - all_AF[j_N]).sum(axis=1)

    distances = _Distances(len(query_QF), len(all_AF), all_AF.dtype, block, pairs)
    return _re_rank(distances, k1, k2, lambda_value)


def _re_rank(distances: _Distances, k1: int, k2: int, lambda_value: float | int) -> np.ndarray:
    """Run the three steps of `k_reciprocal`: neighbour search, encoding and Jaccard distance."""
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise UserError(
            f"re-ranking: found k1 {k1}, k2 {k2}, lambda {lambda_value}, expected k1 and k2 of at least 1 and "
            "lambda from 0 to 1; correct them"
        )
    num_query, num_all = distances.num_query, distances.num_all
    if not num_query or num_query == num_all:
        raise UserError(
            f"re-ranking: found {num_query} queries and {num_all - num_query} gallery images, expected at least one of "
            "each; check the splits"
        )
    scale_A = np.empty(num_all, distances.dtype)
    nearest_AK = np.empty((num_all, min(max(k1 + 1, k2), num_all)), np.int32)
    out_QG = np.empty((num_query, num_all - num_query), distances.dtype)
    for start, stop in row_blocks(num_all, num_all, "re-ranking, neighbours"):
        block_BA = distances.block(start, stop)
        largest_B = block_BA.max(axis=1)
        if not np.isfinite(largest_B).all():
            image = start + int(np.argmin(np.isfinite(largest_B)))
            name = f"query {image}" if image < num_query else f"gallery image {image - num_query}"
            raise UserError(f"the squared distances of {name} are not all finite; check the features for NaN and inf")
        scale_A[start:stop] = np.where(largest_B > 0, largest_B, 1)
        block_BA /= scale_A[start:stop, None]
        nearest_AK[start:stop] = nearest_columns(block_BA, nearest_AK.shape[1])
        if start < num_query:
            out_QG[start:stop] = block_BA[: num_query - start, num_query:]

    encoding = _encode(distances, scale_A, nearest_AK[:, : k1 + 1], int(np.around(k1 / 2)) + 1)
    if k2 > 1:
        encoding = _average(encoding, nearest_AK[:, :k2])
    return _mix_with_jaccard(out_QG, encoding, lambda_value)


def nearest_columns(distance_BA: np.ndarray, k: int) -> np.ndarray:
    """Return the column indices of the k smallest elements of each row, in ascending order of value.

    Ties keep column order.
    """
    k = min(k, distance_BA.shape[1])
    out_BK = np.empty((len(distance_BA), k), np.int32)
    for row, distance_A in enumerate(distance_BA):
        out_BK[row] = nearest_indices(distance_A, k)
    return out_BK


def _is_mutual(nearest_AK: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return a mask of the reciprocal neighbours of images start .. stop - 1, shape (stop - start, K).

    A neighbour is reciprocal if the image is also among the neighbour's own neighbours.
    """
    image_B = np.arange(start, stop)
    return (nearest_AK[nearest_AK[start:stop]] == image_B[:, None, None]).any(axis=2)


def _encode(distances: _Distances, scale_A: np.ndarray, nearest_AK: np.ndarray, half: int) -> _Sparse:
    """Compute the encoding V of `k_reciprocal`, before averaging. The expansion uses the first `half` neighbours."""
    num_all, k = nearest_AK.shape
    half_AH = np.ascontiguousarray(nearest_AK[:, :half])
    width = k * half_AH.shape[1]
    blocks = row_blocks(num_all, width, "re-ranking, reciprocal neighbours")
    half_mutual_AH = np.concatenate([_is_mutual(half_AH, *bounds) for bounds in blocks])
    parts = []
    for start, stop in row_blocks(num_all, width * k, "re-ranking, encodings"):
        near_BK, mutual_BK = nearest_AK[start:stop], _is_mutual(nearest_AK, start, stop)
        member_BKH, reciprocal_BKH = half_AH[near_BK], half_mutual_AH[near_BK]
        own_BK = np.where(mutual_BK, near_BK, -1)
        shared_BKH = reciprocal_BKH & (member_BKH[..., None] == own_BK[:, None, None, :]).any(axis=3)
        # Accept an overlap of more than two thirds, computed in integer arithmetic.
        accepted_BK = mutual_BK & (3 * shared_BKH.sum(axis=2) > 2 * reciprocal_BKH.sum(axis=2))
        added_BKH = np.where(accepted_BK[..., None] & reciprocal_BKH, member_BKH, -1)
        members_BM = np.sort(np.concatenate([own_BK, added_BKH.reshape(stop - start, -1)], axis=1), axis=1)
        keep_BM = members_BM >= 0
        keep_BM[:, 1:] &= members_BM[:, 1:] != members_BM[:, :-1]
        row_N, column_N = np.nonzero(keep_BM)[0], members_BM[keep_BM]
        weight_N = np.exp(-distances.pairs(row_N + start, column_N) / scale_A[row_N + start])
        total_B = np.bincount(row_N, weight_N, stop - start)
        parts.append((keep_BM.sum(axis=1), column_N, (weight_N / total_B[row_N]).astype(distances.dtype)))
    return _sparse(parts)


def _average(encoding: _Sparse, nearest_AK: np.ndarray) -> _Sparse:
    """Replace each encoding by its mean over the image's neighbours (local query expansion)."""
    num_all, k = nearest_AK.shape
    entries = int(np.diff(encoding.start).max(initial=1)) * k
    parts = []
    for start, stop in row_blocks(num_all, entries, "re-ranking, means of encodings"):
        owner_N, entry_N = _entries(encoding.start, nearest_AK[start:stop].ravel())
        key_N = owner_N // k * num_all + encoding.columns[entry_N]
        key_M, inverse_N = np.unique(key_N, return_inverse=True)
        value_M = np.bincount(inverse_N, encoding.values[entry_N], len(key_M)) / k
        counts_B = np.bincount(key_M // num_all, minlength=stop - start)
        parts.append((counts_B, (key_M % num_all).astype(np.int32), value_M.astype(encoding.values.dtype)))
    return _sparse(parts)


def _mix_with_jaccard(out_QG: np.ndarray, encoding: _Sparse, lambda_value: float | int) -> np.ndarray:
    """Replace `out_QG` in place by (1 - lambda) d_J + lambda `out_QG`, where d_J is the Jaccard distance.

    Each encoding sums to 1, so the sum of maxima is 2 minus the sum of minima.
    """
    num_query, num_gallery = out_QG.shape
    num_all = num_query + num_gallery
    first = encoding.start[num_query]
    order = np.argsort(encoding.columns[first:], kind="stable")  # gallery entries, column by column
    image_N = np.repeat(np.arange(num_gallery, dtype=np.int32), np.diff(encoding.start[num_query:]))[order]
    value_N = encoding.values[first:][order]
    column_start = np.searchsorted(encoding.columns[first:][order], np.arange(num_all + 1))
    for query in track(range(num_query), "re-ranking, distances", num_query, "queries"):
        own = slice(encoding.start[query], encoding.start[query + 1])
        owner_M, entry_M = _entries(column_start, encoding.columns[own])
        least_M = np.minimum(encoding.values[own][owner_M], value_N[entry_M])
        shared_G = np.bincount(image_N[entry_M], least_M, num_gallery)
        out_QG[query] = (1 - lambda_value) * (1 - shared_G / (2 - shared_G)) + lambda_value * out_QG[query]
    return out_QG


def _entries(start: np.ndarray, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row (as an index into `rows_N`) and the storage position of each entry of the given sparse rows."""
    counts_N = start[rows_N + 1] - start[rows_N]
    owner_M = np.repeat(np.arange(len(rows_N)), counts_N)
    before_N = np.cumsum(counts_N) - counts_N
    return owner_M, np.arange(len(owner_M)) + (start[rows_N] - before_N)[owner_M]


def _sparse(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _Sparse:
    """Concatenate blocks of (number of entries per row, columns, values) into one sparse matrix."""
    counts_A, columns, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Sparse(np.concatenate([[0], np.cumsum(counts_A)]), columns, values)


def row_blocks(num_rows: int, row_elements: int, title: str) -> Iterator[tuple[int, int]]:
    """Yield the bounds (start, stop) of blocks of rows, and show progress under a title.

    Args:
        num_rows: number of rows, each of which is an image.
        row_elements: number of elements of a row; a block has about `_BLOCK_ELEMENTS` of them in total.
        title: what is done with the rows.
    """
    size = max(1, _BLOCK_ELEMENTS // max(1, row_elements))
    with Progress(title, num_rows, "images") as bar:
        for start in range(0, num_rows, size):
            stop = min(start + size, num_rows)
            yield start, stop
            bar.update(stop - start)


def checked_features(query_QF: Array, gallery_GF: Array) -> tuple[np.ndarray, np.ndarray]:
    """Convert features to NumPy arrays of a common dtype, at least float32.

    Raises:
        UserError: features are not finite, or their shapes are not (Q, F) and (G, F).
    """
    query_QF, gallery_GF = np.asarray(query_QF), np.asarray(gallery_GF)
    if query_QF.ndim != 2 or gallery_GF.ndim != 2 or query_QF.shape[1] != gallery_GF.shape[1]:
        raise UserError(
            f"query features have shape {query_QF.shape}, gallery features have shape {gallery_GF.shape}; "
            "expected (Q, F) and (G, F)"
        )
    for name, features in (("query", query_QF), ("gallery", gallery_GF)):
        if not np.isfinite(features).all():
            raise UserError(f"{name} features: found NaN or inf, expected finite numbers; check the model's output")
    dtype = np.result_type(query_QF, gallery_GF, np.float32)
    return query_QF.astype(dtype, copy=False), gallery_GF.astype(dtype, copy=False)


def l2_normalise(features_NF: np.ndarray) -> np.ndarray:
    """Divide each row by its norm; zero rows stay zero."""
    norm_N1 = np.linalg.norm(features_NF, axis=1, keepdims=True)
    return features_NF / np.where(norm_N1 > 0, norm_N1, 1)
