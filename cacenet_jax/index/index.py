"""`Index`: photographs with their embeddings and pair-stage terms, kept equal to a folder or a manifest.

reid = cacenet_jax.load("workdirs/synthetic")
index = reid.index("photographs", "photographs.lance")  # again: only what changed
print(index.search("a.jpg", k=20))
"""

import functools
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from cacenet_jax.data.image_files import ImageError
from cacenet_jax.data.images import ListedImages
from cacenet_jax.data.photographs import (
    KNOWN,
    Photograph,
    Photographs,
    as_columns,
    in_batches,
    list_photographs,
    read_photograph,
)
from cacenet_jax.distributed import processes
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError, printable
from cacenet_jax.index import groups as grouping
from cacenet_jax.index import search as searching
from cacenet_jax.index.marks import Marks
from cacenet_jax.index.stored_terms import pack, unpack
from cacenet_jax.index.table import Table, as_matrix, literal, locked
from cacenet_jax.retrieval.compare import HostTerms

if TYPE_CHECKING:
    import pyarrow as pa

    from cacenet_jax.retriever import Images, Retriever

_READERS = 4  # threads that decode images
_ROWS = 256  # images of a version, at least; an interrupted update repeats at most so many
_RECALL_QUERIES = 50


class Changes(NamedTuple):
    """Result of an update.

    Attributes:
        added: number of new images.
        changed: number of images whose file or columns changed.
        removed: number of images that are no longer there.
        unchanged: number of images that were left as they are.
        broken: (id, reason) of each image that cannot be read; they are not in the index.
        notes: lines about files that are left out.
        seconds: duration.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    broken: Sequence[tuple[str, str]]
    notes: Sequence[str]
    seconds: float


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

    @functools.cached_property
    def marks(self) -> Marks:
        """Pairs of photographs that were marked as of one person or of two."""
        return Marks(self._table.database)

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
        rows = self.images(f"id = {literal(id)}", ["id", "path", "box", "frame"]).to_pylist()
        if not rows:
            raise UserError(f"{printable(id)}: found no such image in {self.place}, expected one; see Index.images()")
        row = rows[0]
        box = tuple(row["box"]) if row["box"] else None
        photograph = Photograph(row["id"], row["path"], box, row["frame"], 0, 0, {})
        try:
            return Image.fromarray(read_photograph(self.root, photograph))
        except (ImageError, OSError) as error:
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
    ) -> "searching.SearchResult":
        """Search for a person.

        The images nearest by individual distance are re-scored by the pair stage, as in `Retriever.rank`.

        Args:
            query: image of the person, or several images of one person, in any form that `Retriever` accepts. The
                individual distance is then that of the normalised mean embedding, and the pair distance the mean.
            k: number of matches.
            where: filter, an SQL condition on the columns, such as "camera != 3 AND time > 10".
            top_k: number of re-scored images; None for config.eval.top_k of the run.
            rerank: "k_reciprocal" to re-rank the re-scored images and further ones by it, or "none".
            exact: False to use the approximate index of `build_vector_index`.

        Raises:
            UserError: an image cannot be read, the filter is wrong, or `k` is below 1.
        """
        return searching.search(self, query, k, where=where, top_k=top_k, rerank=rerank, exact=exact)

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
            f"at {cut - grouping.SPREAD:g} {high:,}"
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
            return self.update_to(list_photographs(images))

    def update_to(self, listed: Photographs) -> Changes:
        """Make the rows equal to photographs; `update` without the lock."""
        begin = time.perf_counter()
        with processes.writer_first("index prepared"):  # process 0 leaves the others nothing to prepare
            has, todo, removed = self._prepare(listed)
        share = [
            row
            for row in todo
            if zlib.crc32(row.id.encode(errors="surrogateescape")) % jax.process_count() == jax.process_index()
        ]
        failed: list[tuple[str, str]] = []
        size = -(-_ROWS // self.reid.batch_size) * self.reid.batch_size
        batches = in_batches(share, size)
        with ThreadPoolExecutor(_READERS) as pool:
            for batch in track(batches, "indexing", -(-len(share) // size), f"batches of {size} images"):
                self._add(batch, listed.root, pool, failed)
        texts = processes.exchange("images that cannot be read", json.dumps(failed))  # all have written their share
        broken = [(name, reason) for text in texts for name, reason in json.loads(text)]
        added = sum(row.id not in has for row in todo) - sum(name not in has for name, _ in broken)
        lost = [name for name, _ in broken if name in has]
        with processes.writer_first("index complete"):
            self._table.refresh()
            self._table.delete(lost)  # a file that was an image and is none now
            if processes.is_writer() and (todo or removed):
                self._table.tidy(is_new=not has)
        changed = len(todo) - added - len(broken)
        return Changes(
            added, changed, len(removed) + len(lost), len(has) - len(removed) - changed - len(lost), broken, listed.notes,
            time.perf_counter() - begin,
        )  # fmt: skip

    def _prepare(self, listed: Photographs) -> tuple[dict[str, dict], list[Photograph], list[str]]:
        """Remove the rows of missing images.

        Returns:
            Rows before that by id, the photographs to embed, and the ids that were removed.
        """
        self._table.refresh()
        names = dict.fromkeys(name for row in listed.rows for name in row.columns if name not in KNOWN)
        self._table.add_columns({n: [row.columns.get(n) for row in listed.rows] for n in (*KNOWN, *names)})
        has = {row["id"]: row for row in self._table.read().to_pylist()}
        wanted = {row.id for row in listed.rows}
        if has and not has.keys() & wanted:
            raise UserError(
                f"--index={self.place}: found an index of {len(has)} other images, of {self.root}, expected one of these; "
                "choose another --index, or name the folder that it was made from"
            )
        todo = [row for row in listed.rows if row.id not in has or _differs(row, has[row.id])]
        removed = [name for name in has if name not in wanted]
        self._table.delete(removed)
        if str(listed.root.resolve()) != str(self.root):
            self._table.move(str(listed.root.resolve()))
        return has, todo, removed

    def _add(self, batch: Sequence[Photograph], root: Path, pool: ThreadPoolExecutor, broken: list) -> None:
        """Embed photographs and write them as one version."""

        def pixels_of(photograph: Photograph) -> np.ndarray | str:
            try:
                return read_photograph(root, photograph)
            except (ImageError, OSError) as error:
                return str(error)

        read = list(pool.map(pixels_of, batch))
        broken += [(row.id, pixels) for row, pixels in zip(batch, read) if isinstance(pixels, str)]
        good = [(row, pixels) for row, pixels in zip(batch, read) if not isinstance(pixels, str)]
        if not good:
            return
        embedding_nF, terms = self.reid.describe(ListedImages([p for _, p in good], [row.id for row, _ in good]))
        self._table.upsert(
            [
                as_columns(row) | {"embedding": embedding, "terms": None if terms is None else pack(terms, i)}
                for i, ((row, _), embedding) in enumerate(zip(good, embedding_nF))
            ]
        )


def _differs(photograph: Photograph, row: Mapping[str, Any]) -> bool:
    """Return True if a photograph is not that of a row."""
    return any(row.get(name) != value for name, value in as_columns(photograph).items())
