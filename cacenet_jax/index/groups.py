"""Groups of photographs that show one person, and how many people there are.

Agglomerative clustering with average linkage of the k-reciprocal distances among the photographs (Zhong et al. 2017), which
compare neighbourhoods and hardly depend on the network or the cameras. Photographs from one frame, or crops of one image,
show different people: pairs of them are as far apart as can be, and a group of such a pair is split.

The number of people is a range, because it depends on the distance at which groups are cut: the groups at a lower and at
a higher cut bound it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.rerank import k_reciprocal

CUT = 0.6  # k-reciprocal distance below which two groups are joined; see docs/photographs.md
SPREAD = 0.1  # the range is that of the cuts CUT - SPREAD and CUT + SPREAD
MOST = 20_000  # photographs; the distances take 8 n^2 bytes several times
_FAR = 1.0  # distance of photographs that cannot show one person; k-reciprocal distances are at most 1


@dataclasses.dataclass(frozen=True, repr=False)
class Groups:
    """Groups of photographs, each of one person.

    Attributes:
        ids: names in the index.
        labels: number of each photograph's group, shape (n,); the largest group is 0.
        low: lower bound on the number of people.
        best: number of the groups.
        high: upper bound.
        reason: sentence on how the range came about.
    """

    ids: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    low: int
    best: int
    high: int
    reason: str

    def __len__(self) -> int:
        """Return the number of groups."""
        return self.best

    def __getitem__(self, group: int) -> tuple[str, ...]:
        """Return the names of the photographs in a group."""
        if not 0 <= group < self.best:
            raise IndexError(group)
        return tuple(self.ids[i] for i in np.flatnonzero(self.labels == group))

    def __repr__(self) -> str:
        """Return the range and the largest groups as text."""
        sizes = np.bincount(self.labels)
        lines = [f"{len(self.ids):,} photographs in {self.best:,} groups, {self.low:,} to {self.high:,} at other cuts"]
        lines += [
            f"group {group}: {size} photographs, such as {self[group][0]!a}" for group, size in enumerate(sizes[:10])
        ]
        if self.best > 10:
            lines.append(f"and {self.best - 10:,} more, {int((sizes == 1).sum()):,} of a single photograph")
        return "\n".join([*lines, self.reason])


def cannot_link(rows: Sequence[dict[str, Any]]) -> list[Int[np.ndarray, "m"]]:
    """Return the rows of each image or frame that holds several photographs, who are different people.

    Args:
        rows: columns of the index, with path, frame and box.
    """
    places: dict[tuple[str, int | None], list[int]] = {}
    for i, row in enumerate(rows):
        if row["box"] is not None or row["frame"] is not None:
            places.setdefault((row["path"], row["frame"]), []).append(i)
    return [np.array(members) for members in places.values() if len(members) > 1]


def group(
    embedding_nF: Float[np.ndarray, "n F"], apart: Sequence[Int[np.ndarray, "m"]] = (), cut: float = CUT
) -> tuple[Int[np.ndarray, "n"], int, int]:
    """Group photographs by their embeddings.

    Args:
        embedding_nF: L2-normalised embeddings.
        apart: sets of photographs that show different people.
        cut: k-reciprocal distance below which groups are joined.

    Returns:
        labels, shape (n,), the largest group first; and the numbers of groups at the higher and at the lower cut.

    Raises:
        UserError: there are no photographs, or more than `MOST`.
    """
    count = len(embedding_nF)
    if not 0 < count <= MOST:
        raise UserError(
            f"groups: found {count:,} photographs, expected 1 to {MOST:,}, whose distances fit into memory; choose some "
            "with --where"
        )
    if count == 1:
        return np.zeros(1, int), 1, 1
    distance_nn = distances(embedding_nF)
    far_nn = np.zeros((count, count), bool)
    for members in apart:
        far_nn[np.ix_(members, members)] = True
    np.fill_diagonal(far_nn, False)
    distance_nn[far_nn] = _FAR
    labels, *bounds = (_cut(distance_nn, far_nn, c) for c in (cut, cut + SPREAD, cut - SPREAD))
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    low, high = (len(np.unique(bound)) for bound in bounds)
    return np.argsort(order, kind="stable")[labels], min(low, len(sizes)), max(high, len(sizes))


def distances(embedding_nF: Float[np.ndarray, "n F"]) -> Float[np.ndarray, "n n"]:
    """Compute the symmetric k-reciprocal distances among photographs, without the share of the plain distance."""
    together = embedding_nF.astype(np.float64)
    plain_nn = np.sqrt(np.maximum(2 - 2 * together @ together.T, 0))
    k1 = min(20, len(together) - 1)
    distance_nn = np.array(k_reciprocal(plain_nn, plain_nn, plain_nn, k1=k1, k2=min(6, k1), lambda_value=0.0))
    distance_nn = np.clip((distance_nn + distance_nn.T) / 2, 0, 1)
    np.fill_diagonal(distance_nn, 0)
    return distance_nn


def _cut(distance_nn: Float[np.ndarray, "n n"], far_nn: Bool[np.ndarray, "n n"], cut: float) -> Int[np.ndarray, "n"]:
    """Return labels at a cut; members of a group that cannot be one person are put into groups of their own."""
    from sklearn.cluster import AgglomerativeClustering

    clustering = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=cut)
    labels = clustering.fit_predict(distance_nn)
    following = labels.max() + 1
    for label in np.unique(labels[far_nn.any(axis=1)]):
        members = np.flatnonzero(labels == label)
        kept: list[int] = []
        # Those nearest to the group stay; a photograph that cannot be with one of them leaves.
        for i in members[np.argsort(distance_nn[np.ix_(members, members)].mean(axis=1), kind="stable")]:
            if far_nn[i, kept].any():
                labels[i], following = following, following + 1
            else:
                kept.append(int(i))
    return np.unique(labels, return_inverse=True)[1]


def pairwise_f(labels: Int[np.ndarray, "n"], truth: Int[np.ndarray, "n"]) -> float:
    """Compute the pairwise F score: the harmonic mean of precision and recall over pairs of one group or person."""
    pairs = lambda counts: float((counts * (counts - 1) // 2).sum())
    both = np.unique(np.stack([labels, truth]), axis=1, return_counts=True)[1]
    of_labels, of_truth = (pairs(np.unique(x, return_counts=True)[1]) for x in (labels, truth))
    return 2 * pairs(both) / (of_labels + of_truth) if of_labels + of_truth else 1.0
