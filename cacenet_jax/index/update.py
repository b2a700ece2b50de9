"""Update of an index: its rows are made equal to photographs, by one process or by several that share the work."""

import hashlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from cacenet_jax.data.image_files import ImageError
from cacenet_jax.data.images import ListedImages
from cacenet_jax.data.photographs import KNOWN, Photograph, Photographs, as_columns, in_batches, read_photograph
from cacenet_jax.distributed import processes
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.index.stored_terms import pack
from cacenet_jax.index.table import Table

if TYPE_CHECKING:
    from cacenet_jax.retriever import Retriever

_READERS = 4  # threads that decode images
_ROWS = 256  # images of a version, at least; an interrupted update repeats at most so many


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


def update(reid: "Retriever", table: Table, listed: Photographs) -> Changes:
    """Make the rows of an index equal to photographs.

    Every process must make this call, with the same photographs. Each embeds and writes its share; process 0 does the
    rest. A version holds some hundred images.

    Raises:
        UserError: the index is one of other photographs, or the processes see different ones.
    """
    begin = time.perf_counter()
    if jax.process_count() > 1:
        processes.check_same("photographs", _digest(listed))
    with processes.writer_first("index prepared"):
        has, todo, removed = _prepare(table, listed)
    share = [row for row in todo if _owner(row) == jax.process_index()]
    failed: list[tuple[str, str]] = []
    size = -(-_ROWS // reid.batch_size) * reid.batch_size
    with ThreadPoolExecutor(_READERS) as pool:
        for batch in track(in_batches(share, size), "indexing", -(-len(share) // size), f"batches of {size} images"):
            rows, broken = _embed(reid, batch, listed.root, pool)
            table.upsert(rows)
            failed += broken
    texts = processes.exchange("images that cannot be read", json.dumps(failed))  # all have written their share
    failed = [(name, reason) for text in texts for name, reason in json.loads(text)]
    lost = [name for name, _ in failed if name in has]  # files that were images and are none now
    with processes.writer_first("index complete"):
        table.refresh()
        if processes.is_writer():
            table.delete(lost)
            if todo or removed:
                table.tidy(is_new=not has)
    added = sum(row.id not in has for row in todo) - (len(failed) - len(lost))
    changed = len(todo) - added - len(failed)
    counts = [added, changed, len(removed) + len(lost), len(has) - len(removed) - changed - len(lost)]
    # Process 0 saw the index as it was.
    added, changed, gone, unchanged = json.loads(processes.exchange("changes", json.dumps(counts))[0])
    return Changes(added, changed, gone, unchanged, failed, listed.notes, time.perf_counter() - begin)


def _digest(listed: Photographs) -> dict[str, Any]:
    digest = hashlib.sha256()
    for row in listed.rows:
        digest.update(repr(as_columns(row)).encode(errors="surrogateescape"))
    return {"images": len(listed.rows), "sha256": digest.hexdigest()}


def _owner(photograph: Photograph) -> int:
    """Return the index of the process that embeds a photograph."""
    return zlib.crc32(photograph.id.encode(errors="surrogateescape")) % jax.process_count()


def _prepare(table: Table, listed: Photographs) -> tuple[dict[str, dict], list[Photograph], list[str]]:
    """Compare rows with photographs; process 0 removes the rows of missing ones.

    Returns:
        Rows before that by id, the photographs to embed, and the ids that are removed.
    """
    table.refresh()
    if processes.is_writer():
        names = dict.fromkeys(name for row in listed.rows for name in row.columns if name not in KNOWN)
        table.add_columns({n: [row.columns.get(n) for row in listed.rows] for n in (*KNOWN, *names)})
    has = {row["id"]: row for row in table.read().to_pylist()}
    wanted = {row.id for row in listed.rows}
    if has and not has.keys() & wanted:
        raise UserError(
            f"--index={table.place}: found an index of {len(has)} other images, of {table.settings['root']}, expected one "
            "of these; choose another --index, or name the folder that it was made from"
        )
    todo = [row for row in listed.rows if row.id not in has or _differs(row, has[row.id])]
    removed = [name for name in has if name not in wanted]
    if processes.is_writer():
        table.delete(removed)
        root = str(listed.root.resolve())
        if root != table.settings["root"]:
            table.move(root)
    return has, todo, removed


def _embed(
    reid: "Retriever", batch: Sequence[Photograph], root: Path, pool: ThreadPoolExecutor
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return the rows of photographs, and (id, reason) of those that cannot be read."""

    def pixels_of(photograph: Photograph) -> np.ndarray | str:
        try:
            return read_photograph(root, photograph)
        except (ImageError, OSError) as error:
            return str(error)

    read = list(pool.map(pixels_of, batch))
    broken = [(row.id, pixels) for row, pixels in zip(batch, read) if isinstance(pixels, str)]
    good = [(row, pixels) for row, pixels in zip(batch, read) if not isinstance(pixels, str)]
    if not good:
        return [], broken
    embedding_nF, terms = reid.describe(ListedImages([p for _, p in good], [row.id for row, _ in good]))
    rows = [
        as_columns(row) | {"embedding": embedding, "terms": None if terms is None else pack(terms, i)}
        for i, ((row, _), embedding) in enumerate(zip(good, embedding_nF))
    ]
    return rows, broken


def _differs(photograph: Photograph, row: Mapping[str, Any]) -> bool:
    """Return True if a photograph is not that of a row."""
    return any(row.get(name) != value for name, value in as_columns(photograph).items())
