"""`Index`: photographs with their embeddings and pair-stage terms, kept equal to a folder or a manifest.

reid = cacenet_jax.load("workdirs/synthetic")
index = reid.index("photographs", "photographs.lance")  # again: only what changed
print(index.search("a.jpg", k=20))
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from cacenet_jax.data.image_files import ImageError
from cacenet_jax.data.photographs import Photograph, list_photographs, read_photograph
from cacenet_jax.errors import UserError, printable
from cacenet_jax.index import groups as grouping
from cacenet_jax.index import search as searching
from cacenet_jax.index.marks import Marks
from cacenet_jax.index.stored_terms import unpack
from cacenet_jax.index.table import GoneError, Table, as_matrix, literal, locked
from cacenet_jax.index.update import Changes, update
from cacenet_jax.retrieval.compare import HostTerms

if TYPE_CHECKING:
    import pyarrow as pa

    from cacenet_jax.retriever import Images, Retriever

_RECALL_QUERIES = 50


class Index:
    """Photographs in a LanceDB database, returned by `Retriever.index` and `open_index`.

    Attributes:
        place: folder or URI of the database.
        reid: network that embeds queries; the one that the index was made with.
    """

    def __init__(self, reid: "Retriever", table: Table):
        """Check that the network is the one that the index was made with.

        Raises:
            UserError: it is another one, or the index is of a later version of this package.
        """
        self.reid, self.place, self._table = reid, table.place, table
        self._marks = Marks(table.database)
        made_with, here = table.settings["network"], reid.network.fingerprint
        if made_with != here:
            raise UserError(
                f"--index={table.place}: found an index of other weights ({made_with[:12]}, not {here[:12]}), expected one "
                "of this network; name the workdir it was made with, or make a new index"
            )
        if bool(table.settings["terms"]) != (reid.terms_like is not None):
            raise UserError(
                f"--index={table.place}: found an index {'with' if table.settings['terms'] else 'without'} the terms of a "
                "pair stage, expected that of this network; make a new index"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._table)

    def __repr__(self) -> str:
        """Return place and size as text."""
        return f"Index({self.place!r}, {len(self):,} images, of {self.root})"

    @property
    def root(self) -> Path:
        """Folder that the paths of the images are relative to."""
        return Path(self._table.settings["root"])

    @property
    def columns(self) -> list[str]:
        """Names of the columns, for filters, without embedding and terms."""
        return self._table.columns

    @property
    def version(self) -> int:
        """Number that changes with every update."""
        return self._table.version

    @property
    def marks(self) -> Marks:
        """Pairs of photographs that were marked as of one person or of two."""
        return self._marks

    def images(self, where: str | None = None, columns: Sequence[str] | None = None) -> "pa.Table":
        """Return rows as an Arrow table, sorted by id.

        Args:
            where: filter, an SQL condition on the columns; None for all rows.
            columns: names of the columns; None for all but embedding and terms.

        Raises:
            UserError: the filter is wrong.
        """
        return self._table.read(columns, where)

    def to_arrow(self) -> "pa.Table":
        """Return all rows with all columns as an Arrow table."""
        return self._table.read([*self._table.columns, "embedding", "terms"])

    def embeddings(self, ids: Sequence[str] | None = None) -> Float[np.ndarray, "n F"]:
        """Return L2-normalised embeddings, of all images in the order of `images` or of some in theirs."""
        rows = self._table.read(["embedding"]) if ids is None else self._table.take(ids, ["embedding"])
        return as_matrix(rows["embedding"])

    def terms(self, ids: Sequence[str]) -> HostTerms:
        """Return the pair-stage terms of images, for `Retriever.pair_distances`."""
        stored = self._table.take(ids, ["terms"])["terms"].to_pylist()
        return unpack(stored, self._table.settings["terms"], self.reid.terms_like)

    def has(self, id: str) -> bool:
        """Return True if there is an image of this name."""
        return self._table.count(f"id = {literal(id)}") > 0

    def read_image(self, id: str) -> Image.Image:
        """Read an image: its file, crop or frame.

        Raises:
            UserError: there is no such image, or its file cannot be read.
        """
        row = self._table.take([id], ["id", "path", "box", "frame"]).to_pylist()[0]
        box = tuple(row["box"]) if row["box"] else None
        photograph, root = Photograph(row["id"], row["path"], box, row["frame"], 0, 0, {}), self.root
        try:
            return Image.fromarray(read_photograph(root, photograph))
        except (ImageError, OSError) as error:
            self._table.refresh()
            if self.root != root:  # the folder has moved
                return self.read_image(id)
            raise UserError(f"{printable(id)}: {error}; update the index with --mode=index") from error

    def search(
        self,
        query: "Images",
        k: int = 10,
        *,
        where: str | None = None,
        top_k: int | None = None,
        rerank: str = "none",
        exact: bool = True,
        prior: float | None = None,
    ) -> "searching.SearchResult":
        """Search for a person.

        The images nearest by individual distance are re-scored by the pair stage, as in `Retriever.rank`.

        Args:
            query: image of the person, or several images of one person, in any form that `Retriever` accepts or by their
                names in the index. Of several, the individual distance is that of the normalised mean embedding, and the
                pair distance the mean.
            k: number of matches.
            where: filter, an SQL condition on the columns, such as "path LIKE 'gate/%' AND time > 10".
            top_k: number of re-scored images; None for config.eval.top_k of the run.
            rerank: "k_reciprocal" to re-rank the re-scored images and further ones by it, or "none".
            exact: False to use the approximate index of `build_vector_index`.
            prior: share of images that show the person among those that are looked at, which probabilities assume; that
                of the calibration if None.

        Raises:
            UserError: an image cannot be read, the filter is wrong, or `k` is below 1.
        """
        search = functools.partial(
            searching.search, self, query, k, where=where, top_k=top_k, rerank=rerank, exact=exact, prior=prior
        )
        try:
            return search()
        except GoneError:  # an update removed a match meanwhile
            self._table.refresh()
            return search()

    def groups(self, where: str | None = None, cut: float = grouping.CUT) -> "grouping.Groups":
        """Group the photographs by person; needs scikit-learn.

        Args:
            where: filter, an SQL condition on the columns; None for all photographs.
            cut: k-reciprocal distance, from 0 to 1, below which groups are joined; lower values give more groups.

        Raises:
            UserError: the filter is wrong, or there are no photographs or too many.
        """
        if not 0 < cut < 1:
            raise UserError(f"cut: found {cut}, expected a number between 0 and 1; correct it")
        rows = self.images(where, ["id", "path", "box", "frame"]).to_pylist()
        ids = tuple(row["id"] for row in rows)
        embedding_nF = self.embeddings(ids) if ids else np.empty((0, self.reid.embedding_size), np.float32)
        apart = grouping.cannot_link(rows)
        labels, low, high = grouping.group(embedding_nF, apart, cut)
        reason = (
            f"groups are joined below a k-reciprocal distance of {cut:g}; at {cut + grouping.SPREAD:g} there are {low:,}, "
            f"at {cut - grouping.SPREAD:g} {high:,}. A group is a person as far as the network recognises one: of people or "
            "cameras that are new to it, there may be half as many people as groups"
        )
        if apart:
            reason += f"; photographs of one frame are different people ({len(apart):,} frames)"
        return grouping.Groups(ids, labels, low, int(labels.max()) + 1, high, reason)

    def build_vector_index(self) -> float:
        """Build an approximate index of the embeddings and return its recall of the 100 nearest of 50 images."""
        self._table.build_vector_index()
        generator, ids = np.random.default_rng(0), self.images(columns=["id"])["id"].to_pylist()
        chosen = [ids[i] for i in generator.choice(len(ids), min(_RECALL_QUERIES, len(ids)), replace=False)]
        shares = []
        for embedding in self.embeddings(chosen):
            exact, approximate = (set(self._table.closest(embedding, 100, None, e)[0]) for e in (True, False))
            shares.append(len(exact & approximate) / len(exact))
        return float(np.mean(shares))

    def closest(
        self, embedding_F: np.ndarray, count: int, where: str | None, exact: bool
    ) -> tuple[list[str], np.ndarray]:
        """Return ids and embeddings of the images nearest to an embedding."""
        return self._table.closest(embedding_F, count, where, exact or not self._table.has_vector_index())

    def rows_of(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the columns of images, in their order."""
        return self._table.take(ids, self.columns).to_pylist() if ids else []

    def update(self, images: str | os.PathLike[str]) -> Changes:
        """Make the rows equal to the images of a folder or a manifest.

        New images are added, changed ones embedded again, and missing ones removed. Each version holds some hundred
        images, so that an interrupted update goes on where it stopped. Of several processes, all of which must make
        this call, each embeds and writes its share.

        Args:
            images: folder, with its subfolders, or manifest; see `data.photographs`.

        Raises:
            UserError: there are no images, the manifest has mistakes, or another update is in progress.
        """
        with locked(self.place):
            return update(self.reid, self._table, list_photographs(images))
