"""Distances of a query to the images that figures compare it with, and the words that figures and pages use for them."""

from typing import NamedTuple

import numpy as np

from cacenet_jax.errors import printable
from cacenet_jax.retrieval.rankings import RankedLists, mixed_distance


class Scores(NamedTuple):
    """Distances of two images; smaller is more alike.

    Attributes:
        individual: distance of their embeddings.
        pair: pair-stage distance; NaN if the pair stage did not compare them.
        mixed: weighted mean of both, which orders the mixed ranking; NaN like `pair`.
    """

    individual: float
    pair: float
    mixed: float

    def words(self) -> tuple[str, ...]:
        """Return the three distances as text, a dash for one that is not known."""
        return tuple("\u2013" if np.isnan(value) else f"{value:z.4f}" for value in self)


NO_SCORES = Scores(np.nan, np.nan, np.nan)


class Compared(NamedTuple):
    """An image that a query is compared with.

    Attributes:
        name: name of its record.
        right: True if it shows the query's identity; None if that is unknown.
        ranks: its ranks, for example "rank 4 -> 1", or an empty string.
        scores: its distances to the query.
    """

    name: str
    right: bool | None
    ranks: str
    scores: Scores

    def caption(self) -> str:
        """Return the ranks, the name and the distances as lines of text."""
        individual, pair, mixed = self.scores.words()
        lines = (self.ranks, printable(self.name), f"individual {individual}", f"pair {pair}, mixed {mixed}")
        return "\n".join(filter(None, lines))


def ranked_scores(ranking: RankedLists, q: int, mix: float) -> dict[int, Scores]:
    """Return the distances of the images in the ranked list of query q, by index of the gallery image.

    Args:
        ranking: ranked lists.
        q: index of the query.
        mix: weight of the pair distance in the mixed distance.
    """
    order_L, individual_L, pair_L = ranking.order_QL[q], ranking.individual_QL[q], ranking.pair_QL[q]
    mixed_L = mixed_distance(pair_L[None], individual_L[None], mix)[0]
    rows = zip(order_L.tolist(), individual_L.tolist(), pair_L.tolist(), mixed_L.tolist())
    return {g: Scores(*distances) for g, *distances in rows if g >= 0}
