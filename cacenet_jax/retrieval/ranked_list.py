"""Results of `cacenet_jax.Retriever`: ranked lists of a query's best gallery images, and comparisons of two images."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Match:
    """A gallery image in the ranked list of a query.

    More similar images have smaller distances.

    Attributes:
        name: path of the image, or "gallery image i" for an array.
        index: index i of the image in the gallery, from 0.
        individual: cosine distance between the embeddings of query and image, from 0 to 2.
        pair: pair-stage distance; NaN if the image was not re-scored.
        mixed: distance that re-scored images are sorted by, `mix * pair + (1 - mix) * individual`; NaN if the image was
            not re-scored. Without a pair stage, the individual distance.
    """

    name: str
    index: int
    individual: float
    pair: float
    mixed: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Distances of two images.

    Attributes:
        individual: cosine distance between the embeddings, from 0 to 2.
        pair: pair-stage distance; NaN without a pair stage.
        mixed: `mix * pair + (1 - mix) * individual`; without a pair stage, the individual distance.
        probability: probability that both show one person, from the mixed distance (without a pair stage, from the
            individual one); None if the network is not calibrated.
    """

    individual: float
    pair: float
    mixed: float
    probability: float | None


@dataclasses.dataclass(frozen=True, repr=False)
class RankedList:
    """The top matches of a query, a sequence of `Match` that prints as a table.

    Attributes:
        query: path of the query, or "query i" for an array.
        matches: gallery images, best first.
    """

    query: str
    matches: tuple[Match, ...]

    def __len__(self) -> int:
        """Return the number of matches."""
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        """Iterate over the matches, best first."""
        return iter(self.matches)

    def __getitem__(self, place: int) -> Match:
        """Return the match at the 0-based index `place`."""
        return self.matches[place]

    def __repr__(self) -> str:
        """Return the list as a text table."""
        lines = [self.query, f"{'rank':>4}  {'individual':>10}  {'pair':>7}  {'mixed':>7}  name"]
        for rank, match in enumerate(self.matches, start=1):
            pair, mixed = ("-" if np.isnan(x) else f"{x:z.4f}" for x in (match.pair, match.mixed))
            lines.append(f"{rank:>4}  {match.individual:>z10.4f}  {pair:>7}  {mixed:>7}  {match.name}")
        return "\n".join(lines)
