"""Query expansion: each query becomes a weighted mean of itself and its nearest gallery images."""

import numpy as np
from jaxtyping import Float

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.rerank import Array, checked_features, l2_normalise, nearest_columns, row_blocks


def query_expansion(
    query_QF: Float[Array, "Q F1"], gallery_GF: Float[Array, "G F2"], k: int, alpha: float | int
) -> Float[np.ndarray, "Q F1"]:
    """Replace each query by a weighted mean of itself and its nearest gallery images.

    q' = x / |x|,  x = q + sum_{g in top-k(q)} max(q.g, 0)^alpha g, for L2-normalised q and g. With alpha = 0, all
    weights are 1.

    Args:
        query_QF: features of the queries.
        gallery_GF: features of the gallery.
        k: number of neighbours; ties keep gallery order. 0 returns the queries unchanged.
        alpha: exponent of the weights; larger values favour nearer neighbours.

    Returns:
        Expanded queries, L2-normalised if k > 0.

    Raises:
        UserError: feature sizes differ, features are not finite, or k or alpha is negative.

    Source: Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
    """
    if k < 0 or alpha < 0:
        raise UserError(f"query expansion: found k {k} and alpha {alpha}, expected both to be at least 0; raise them")
    query_QF, gallery_GF = checked_features(query_QF, gallery_GF)
    if not k or not len(gallery_GF):
        return query_QF
    query_QF, gallery_GF = l2_normalise(query_QF), l2_normalise(gallery_GF)
    out_QF = np.empty_like(query_QF)
    for start, stop in row_blocks(len(query_QF), len(gallery_GF), "query expansion"):
        similarity_BG = query_QF[start:stop] @ gallery_GF.T
        top_BK = nearest_columns(-similarity_BG, k)
        weight_BK = np.maximum(np.take_along_axis(similarity_BG, top_BK, axis=1), 0) ** alpha
        out_QF[start:stop] = query_QF[start:stop] + np.einsum("bk,bkf->bf", weight_BK, gallery_GF[top_BK])
    return l2_normalise(out_QF)
