"""Search of an index: individual ranking, pair re-scoring of its best images, probabilities."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cacenet_jax.data.images import ListedImages
from cacenet_jax.errors import UserError, printable
from cacenet_jax.retrieval.calibration import check_prior, per_cent
from cacenet_jax.retrieval.distances import cosine_distance
from cacenet_jax.retrieval.rankings import mixed_distance
from cacenet_jax.retrieval.rerank import k_reciprocal

if TYPE_CHECKING:
    from cacenet_jax.index.index import Index

RERANK = ("none", "k_reciprocal")
_SPARE = 10  # images beyond those that are asked for, among which ties are put in order
_RERANKED = 200  # images that are re-ranked, at least


@dataclasses.dataclass(frozen=True)
class SearchMatch:
    """An image of an index in the result of a search.

    Attributes:
        id: name in the index.
        individual: cosine distance between the embeddings of query and image, from 0 to 2.
        pair: pair-stage distance; NaN if the image was not re-scored.
        mixed: `mix * pair + (1 - mix) * individual`; NaN if it was not re-scored, the individual one without a pair stage.
        reranked: k-reciprocal distance; NaN if the image was not re-ranked.
        probability: probability that query and image show one person; None if the network is not calibrated.
        row: the other columns of the image.
    """

    id: str
    individual: float
    pair: float
    mixed: float
    reranked: float
    probability: float | None
    row: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, repr=False)
class SearchResult:
    """Matches of a query, a sequence of `SearchMatch` that prints as a table.

    Attributes:
        query: names of the query's images.
        matches: images of the index, best first.
        unknown: True if even the best match is above the threshold that one in ten queries of absent people passes, so
            that the person is probably not in the index; None if the network is not calibrated for that.
        searched: number of images that the filter left.
        caution: statement on the calibration, or on the lack of one.
        itself: names in the index of the query's own images.
    """

    query: tuple[str, ...]
    matches: tuple[SearchMatch, ...]
    unknown: bool | None
    searched: int
    caution: str
    itself: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Return the number of matches."""
        return len(self.matches)

    def __iter__(self) -> Iterator[SearchMatch]:
        """Iterate over the matches, best first."""
        return iter(self.matches)

    def __getitem__(self, place: int) -> SearchMatch:
        """Return the match at the 0-based index `place`."""
        return self.matches[place]

    def __repr__(self) -> str:
        """Return the result as a text table."""
        shown = ", ".join(printable(name) for name in self.query[:3]) + (" ..." if len(self.query) > 3 else "")
        lines = [f"{shown}: {len(self.matches)} of {self.searched:,} images"]
        is_reranked = any(not np.isnan(match.reranked) for match in self.matches)
        lines.append(
            f"{'rank':>4}  {'individual':>10}  {'pair':>7}  {'mixed':>7}  {'probability':>12}"
            f"{'  re-ranked' if is_reranked else ''}  image"
        )
        for rank, match in enumerate(self.matches, start=1):
            pair, mixed = ("-" if np.isnan(x) else f"{x:z.4f}" for x in (match.pair, match.mixed))
            known = "-" if match.probability is None else per_cent(match.probability)
            numbers = f"{rank:>4}  {match.individual:>z10.4f}  {pair:>7}  {mixed:>7}  {known:>12}"
            again = f"  {match.reranked:>z9.4f}" if is_reranked else ""
            itself = " (the query itself)" if match.id in self.itself else ""
            lines.append(f"{numbers}{again}  {printable(match.id)}{itself}")
        if self.unknown:
            lines.append("unknown: the best match is above the threshold, so the person is probably not in the index")
        return "\n".join([*lines, self.caution])


def search(
    index: "Index", query: Any, k: int, *, where: str | None, top_k: int | None, rerank: str, exact: bool,
    prior: float | None,
) -> SearchResult:  # fmt: skip
    """Search an index; see `Index.search`."""
    reid = index.reid
    if k < 1:
        raise UserError(f"--k: found {k}, expected 1 or more; raise it")
    if rerank not in RERANK:
        raise UserError(f"rerank: found {rerank!r}, expected one of {', '.join(RERANK)}; choose one of them")
    if top_k is not None and (top_k < 0 or (top_k and not reid.top_k)):
        expected = "0 or more" if reid.top_k else "0, because the network has no pair stage"
        raise UserError(f"top_k: found {top_k}, expected {expected}; correct it")
    calibration = reid.calibration
    listed, itself = _with_images_of(index, ListedImages.of(query, "query"))
    if not listed.images:
        raise UserError("query: found no images, expected one or several of one person; name them")
    embedding_nF, query_terms = reid.describe(listed)
    mean_F = embedding_nF.astype(np.float64).mean(axis=0)
    mean_F /= max(np.linalg.norm(mean_F), np.finfo(np.float64).tiny)
    one_1F = embedding_nF if len(embedding_nF) == 1 else mean_F[None].astype(np.float32)
    top_k = reid.top_k if top_k is None else top_k
    count = max(top_k, k, _RERANKED if rerank != "none" else 0)
    ids, gallery_nF = index.closest(one_1F[0], count + _SPARE, where, exact)
    searched = len(index) if where is None else index.images(where, ["id"]).num_rows
    distance_n = cosine_distance(one_1F, gallery_nF.astype(np.float64))[0] if ids else np.empty(0, np.float32)
    order = sorted(range(len(ids)), key=lambda i: (distance_n[i], ids[i]))[:count]
    ids, gallery_nF = [ids[i] for i in order], gallery_nF[order]
    individual_n = distance_n[order]
    pair_n = np.full(len(ids), np.nan, np.float32)
    mixed_n = pair_n.copy() if reid.top_k else individual_n.copy()
    first = min(top_k, len(ids))
    if first and query_terms is not None:
        terms = index.terms(ids[:first])
        candidates = np.tile(np.arange(first), (len(listed.images), 1))
        pair_n[:first] = reid.pair_distances(query_terms, terms, candidates).mean(axis=0)
        mixed_n[:first] = mixed_distance(pair_n[None, :first], individual_n[None, :first], reid.mix)[0]
    reranked_n = np.full(len(ids), np.nan)
    if rerank == "k_reciprocal" and len(ids) > 1:
        reranked_n = _reranked(one_1F, gallery_nF)
        place = np.argsort(reranked_n, kind="stable")
    else:
        place = np.concatenate([np.argsort(mixed_n[:first], kind="stable"), np.arange(first, len(ids))])
    place = place[:k].astype(int)
    kind, decisive_n = ("mixed", mixed_n) if first and query_terms is not None else ("individual", individual_n)
    known: list[float | None] = [None] * len(ids)
    if calibration is not None and kind in calibration.curves:
        known = [None if np.isnan(x) else float(calibration.probability(float(x), kind, prior)) for x in decisive_n]
    rows = index.rows_of([ids[i] for i in place])
    matches = tuple(
        SearchMatch(
            ids[i], float(individual_n[i]), float(pair_n[i]), float(mixed_n[i]), float(reranked_n[i]), known[i],
            {name: value for name, value in row.items() if name != "id"},
        )
        for i, row in zip(place.tolist(), rows)
    )  # fmt: skip
    unknown = None
    if calibration is not None and kind in calibration.curves and len(ids):
        threshold = calibration.search_threshold(kind, searched)
        unknown = None if threshold is None else bool(np.nanmin(decisive_n) >= threshold)
    if calibration is None:
        caution = "not calibrated: no probabilities; see --mode=calibrate"
    else:
        share = check_prior(calibration.prior if prior is None else prior)
        caution = (
            f"Probabilities assume that {100 * share:g} % of the images looked at show the person (prior). "
            f"{calibration.caution()}"
        )
    return SearchResult(tuple(listed.names), matches, unknown, searched, caution, itself)


def _with_images_of(index: "Index", listed: ListedImages) -> tuple[ListedImages, frozenset[str]]:
    """Read the images that are given by their names in an index, and return the names of those that are in it."""
    images, itself = list(listed.images), set()
    for i, image in enumerate(images):
        if not isinstance(image, str | os.PathLike):
            continue
        path = Path(image)
        is_file = path.is_file()
        name = os.path.relpath(path.resolve(), index.root).replace(os.sep, "/") if is_file else os.fspath(image)
        if index.has(name):
            itself.add(name)
            images[i] = image if is_file else np.asarray(index.read_image(name))
    return ListedImages(images, listed.names), frozenset(itself)


def _reranked(query_1F: np.ndarray, gallery_nF: np.ndarray) -> np.ndarray:
    """Return the k-reciprocal distances of the retrieved images among themselves."""
    together = np.concatenate([query_1F, gallery_nF]).astype(np.float64)
    distance = np.sqrt(np.maximum(2 - 2 * together @ together.T, 0))
    k1 = min(20, len(gallery_nF) - 1)
    return np.asarray(k_reciprocal(distance[:1, 1:], distance[:1, :1], distance[1:, 1:], k1=k1, k2=min(6, k1)))[0]
