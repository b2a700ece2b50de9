"""Ranked lists of `cacenet_jax.Retriever`: names and distances of the best gallery images of a query."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Match:
    """A gallery image in the ranked list of a query. Distances are smaller for images that are more alike.

    Attributes:
        name: path of the image, or "gallery image i" for an array.
        index: i, place of the image in the gallery as it was given, from 0.
        individual: cosine distance of the embeddings of query and image, 0 to 2.
        pair: distance by the pair stage; NaN where the image was not re-scored.
        mixed: distance that orders the re-scored images, `mix * pair + (1 - mix) * individual`; NaN where the image was not
            re-scored, and the individual distance in a network without a pair stage.
    """

    name: str
    index: int
    individual: float
    pair: float
    mixed: float


@dataclasses.dataclass(frozen=True, repr=False)
class RankedList:
    """The beginning of a query's ranking of the gallery; a sequence of `Match`, which prints as a table.

    Attributes:
        query: path of the query, or "query i" for an array.
        matches: gallery images, the best first.
    """

    query: str
    matches: tuple[Match, ...]

    def __len__(self) -> int:
        """Return the number of matches."""
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        """Iterate over the matches, the best first."""
        return iter(self.matches)

    def __getitem__(self, place: int) -> Match:
        """Return the match at a place, from 0."""
        return self.matches[place]

    def __repr__(self) -> str:
        """Return a table of the list."""
        lines = [self.query, f"{'rank':>4}  {'individual':>10}  {'pair':>7}  {'mixed':>7}  name"]
        for rank, match in enumerate(self.matches, start=1):
            pair, mixed = ("-" if np.isnan(x) else f"{x:.4f}" for x in (match.pair, match.mixed))
            lines.append(f"{rank:>4}  {match.individual:>10.4f}  {pair:>7}  {mixed:>7}  {match.name}")
        return "\n".join(lines)
