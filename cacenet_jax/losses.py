"""Training losses: identity loss, mix-up identity loss, batch-hard triplet loss and list loss.

Legend: B images in a batch, R rows and C columns of a pair grid, F embedding size, I training identities.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

AnyArray = Array | ndarray


class LossWeights(NamedTuple):
    """Weights and constants of the loss.

    Attributes:
        margin: triplet margin, for distances between normalised embeddings.
        alpha: weight of the target's identity in the mix-up loss (equation 8).
        identity: weight of the identity loss on f(I).
        triplet: weight of the triplet loss on f(I).
        pair_identity: weight of the mix-up identity loss on f(u|v).
        pair_triplet: weight of the triplet loss on pair distances.
        evidence: weight of the list loss on the local-evidence scores.
        label_smoothing: label smoothing of the identity loss on f(I).
    """

    margin: float = 0.5
    alpha: float = 0.9
    identity: float = 1.0
    triplet: float = 1.0
    pair_identity: float = 1.0
    pair_triplet: float = 1.0
    evidence: float = 1.0
    label_smoothing: float = 0.0


class GridLabels(NamedTuple):
    """Identity labels of a pair grid.

    Attributes:
        row_labels_R: identities of the rows, which are the images on this device.
        column_labels_C: identities of the columns, which are all images of the batch.
        row_index_R: column index of each row's own image.
    """

    row_labels_R: Array
    column_labels_C: Array
    row_index_R: Array


class RowLosses(NamedTuple):
    """Per-row losses and a mask of the valid rows.

    Attributes:
        loss_R: loss of each row, 0 for invalid rows.
        valid_R: 1 for valid rows, 0 otherwise.
    """

    loss_R: Array
    valid_R: Array


def every_row(loss_R: Float[AnyArray, "R"]) -> RowLosses:
    """Return `RowLosses` in which every row is valid."""
    loss_R = jnp.asarray(loss_R)
    return RowLosses(loss_R, jnp.ones_like(loss_R))


def _wide(x: Float[AnyArray, "*any"]) -> Float[Array, "*any"]:
    """Promote to at least float32, so that softmax and distances are never computed in half precision."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(
    logits: Float[AnyArray, "*batch I"], labels: Int[AnyArray, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Compute the cross entropy -log softmax(logits)[label] of each embedding.

    Args:
        logits: identity scores, shape (*batch, I).
        labels: identities, from 0 to I-1.
        smoothing: share of the target distribution spread uniformly over all I identities, including the label.

    Source: paper, equation 1, with the missing minus sign added and the stray factor 1/C removed. Smoothing: Szegedy
        et al. 2016, https://arxiv.org/abs/1512.00567, section 7.
    """
    log_p = jax.nn.log_softmax(_wide(logits), axis=-1)
    loss = -jnp.take_along_axis(log_p, jnp.asarray(labels)[..., None], axis=-1)[..., 0]
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(axis=-1)


def mixup_rows(
    logits_RCI: Float[AnyArray, "R C I"],
    row_labels_R: Int[AnyArray, "R"],
    column_labels_C: Int[AnyArray, "C"],
    alpha: float,
) -> Float[Array, "R"]:
    """Compute equation 8 for each target image, averaged over its contextual images.

    The training step uses this form.
    """
    log_p_RCI = jax.nn.log_softmax(_wide(logits_RCI), axis=-1)
    row_labels_R, column_labels_C = jnp.asarray(row_labels_R), jnp.asarray(column_labels_C)
    shape = log_p_RCI.shape[:2]
    target_RC = jnp.take_along_axis(log_p_RCI, jnp.broadcast_to(row_labels_R[:, None], shape)[..., None], -1)[..., 0]
    context_RC = jnp.take_along_axis(log_p_RCI, jnp.broadcast_to(column_labels_C[None], shape)[..., None], -1)[..., 0]
    return -(alpha * target_RC + (1 - alpha) * context_RC).mean(axis=1)


def mixup_cross_entropy(
    logits_BBC: Float[AnyArray, "B B C"], labels_B: Int[AnyArray, "B"], alpha: float
) -> Float[Array, ""]:
    """Compute the mean over the grid of alpha CE(y_u, f(u|v)) + (1 - alpha) CE(y_v, f(u|v)).

    This form requires the whole grid on one device. The training step uses `mixup_rows`.

    Args:
        logits_BBC: scores of the C identities for f(u|v), with target u on the first axis and context v on the second.
        labels_B: identity of each image, from 0 to C-1.
        alpha: weight of the target's identity, 0.9 in the paper.

    Returns:
        Scalar loss. The paper sums over the grid; the mean does not scale with the batch size.

    Source: paper, equation 8.
    """
    return mixup_rows(logits_BBC, labels_B, labels_B, alpha).mean()


def _pairs(row_labels_R: AnyArray, column_labels_C: AnyArray, row_index_R: AnyArray) -> tuple[Array, Array]:
    """Return two (R, C) masks: same-identity pairs, and same-identity pairs of two different images."""
    columns_C = jnp.asarray(column_labels_C)
    same_RC = jnp.asarray(row_labels_R)[:, None] == columns_C[None]
    itself_RC = jnp.asarray(row_index_R)[:, None] == jnp.arange(len(columns_C))[None]
    return same_RC, same_RC & ~itself_RC


def batch_hard_rows(
    distance_RC: Float[AnyArray, "R C"],
    row_labels_R: Int[AnyArray, "R"],
    column_labels_C: Int[AnyArray, "C"],
    row_index_R: Int[AnyArray, "R"],
    margin: float,
) -> RowLosses:
    """Compute the batch-hard triplet loss of each row: relu(margin + hardest positive - hardest negative).

    Args:
        distance_RC: distances from this device's images to all images of the batch.
        row_labels_R: identities of the rows.
        column_labels_C: identities of the columns.
        row_index_R: column index of each row's own image, which is not a positive.
        margin: margin, in the units of the distance.

    Returns:
        Loss and validity of each row; a row without a positive or a negative is invalid.
    """
    distance_RC = _wide(distance_RC)
    same_RC, positive_RC = _pairs(row_labels_R, column_labels_C, row_index_R)
    hardest_positive_R = jnp.max(jnp.where(positive_RC, distance_RC, -jnp.inf), axis=1)
    hardest_negative_R = jnp.min(jnp.where(same_RC, jnp.inf, distance_RC), axis=1)
    valid_R = positive_RC.any(axis=1) & (~same_RC).any(axis=1)
    gap_R = jnp.where(valid_R, hardest_positive_R, 0) - jnp.where(valid_R, hardest_negative_R, 0)
    loss_R = jnp.where(valid_R, jax.nn.relu(gap_R + margin), 0)
    return RowLosses(loss_R, valid_R.astype(loss_R.dtype))


def list_rows(
    score_RC: Float[AnyArray, "R C"],
    row_labels_R: Int[AnyArray, "R"],
    column_labels_C: Int[AnyArray, "C"],
    row_index_R: Int[AnyArray, "R"],
) -> RowLosses:
    """Compute the list loss of each row: the mean over positives p of -log(e^p / (e^p + sum over negatives n of e^n)).

    Args:
        score_RC: scores between this device's images and all images of the batch, higher for the same identity.
        row_labels_R: identities of the rows.
        column_labels_C: identities of the columns.
        row_index_R: column index of each row's own image, which is not a positive.

    Returns:
        Loss and validity of each row; a row without a positive or a negative is invalid.
    """
    score_RC = _wide(score_RC)
    same_RC, positive_RC = _pairs(row_labels_R, column_labels_C, row_index_R)
    valid_R = positive_RC.any(axis=1) & (~same_RC).any(axis=1)
    negatives_RC = jnp.where(same_RC & valid_R[:, None], -jnp.inf, score_RC)
    all_R = jax.nn.logsumexp(negatives_RC, axis=1)
    loss_RC = jnp.where(positive_RC & valid_R[:, None], jax.nn.softplus(all_R[:, None] - score_RC), 0)
    loss_R = loss_RC.sum(axis=1) / jnp.maximum(positive_RC.sum(axis=1), 1)
    return RowLosses(loss_R, valid_R.astype(loss_R.dtype))


def batch_hard_triplet(
    distance_BB: Float[AnyArray, "B B"], labels_B: Int[AnyArray, "B"], margin: float
) -> Float[Array, ""]:
    """Compute the mean over anchors of relu(margin + hardest positive - hardest negative).

    This form requires the whole grid on one device. The training step uses `batch_hard_rows`.

    Args:
        distance_BB: distances, with anchors on the first axis; the diagonal is ignored.
        labels_B: identity of each image.
        margin: margin, in the units of the distance.

    Returns:
        Scalar loss, the mean over anchors with at least one positive and one negative; 0 if there are none.

    Source: Hermans, Beyer and Leibe 2017, "In defense of the triplet loss", the paper's [8].
    """
    labels_B = jnp.asarray(labels_B)
    rows = batch_hard_rows(distance_BB, labels_B, labels_B, jnp.arange(labels_B.shape[0]), margin)
    return rows.loss_R.sum() / jnp.maximum(rows.valid_R.sum(), 1)


def safe_sqrt(square: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Compute the square root, or 0 with zero gradient where the argument is not positive."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def euclidean(left: Float[Array, "*#batch F"], right: Float[Array, "*#batch F"]) -> Float[Array, "*#batch"]:
    """Compute the Euclidean distance between vectors along the last axis; the other axes are broadcast.

    The gradient is zero where the distance is 0.
    """
    return safe_sqrt(jnp.sum((left - right) ** 2, axis=-1))


def euclidean_grid(rows_RF: Float[Array, "R F"], columns_CF: Float[Array, "C F"]) -> Float[Array, "R C"]:
    """Compute the Euclidean distance between every row vector and every column vector.

    It is computed from differences, so equal vectors have a distance of exactly 0.
    """
    return euclidean(rows_RF[:, None], columns_CF[None])
