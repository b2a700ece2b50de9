"""Rows of an index in LanceDB: an embedded database whose every write is one atomic version.

A row has id, path, box, frame, bytes, modified, camera, time, track, identity, further columns of the manifest, embedding
(F,) and terms, the bytes of the pair-stage terms. A second table of one row names the network and the images' folder.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cacenet_jax.distributed.processes import is_writer
from cacenet_jax.errors import UserError, printable

os.environ.setdefault("LANCEDB_LOG", "error")  # it warns about each table that is new

try:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq
except ModuleNotFoundError as error:
    raise UserError(
        "an index needs the package lancedb, found none; pip install 'cacenet_jax[index]', or lancedb by itself"
    ) from error

NAME, SETTINGS = "photographs", "settings"
VERSION = 1
HEAVY = ("embedding", "terms")
_FIXED = {
    "id": pa.string(), "path": pa.string(), "box": pa.list_(pa.int32(), 4), "frame": pa.int64(), "bytes": pa.int64(),
    "modified": pa.int64(),
}  # fmt: skip
KEPT = datetime.timedelta(minutes=10)  # older versions are kept so long, for searches that are in progress
_SEEN = datetime.timedelta(seconds=5)  # within which a reader sees the update of another process
_IDS = 500  # in one filter


class GoneError(UserError):
    """Error raised if images are no longer in the index, because an update removed them."""


def literal(text: str) -> str:
    """Return a text as a literal of a filter."""
    return "'" + text.replace("'", "''") + "'"


class Table:
    """The rows of an index.

    Attributes:
        place: folder or URI of the database.
        settings: what the index was made with: "network" (fingerprint), "embedding_size", "terms" (shape and dtype of
            each array of an image's terms; empty without a pair stage), "root" and "version".
    """

    def __init__(self, place: str, database: "lancedb.DBConnection", settings: Mapping[str, Any]):
        self.place, self.settings = place, dict(settings)
        self._database, self._table = database, database.open_table(NAME)

    @classmethod
    def create(cls, place: str, settings: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> "Table":
        """Create an empty table.

        Args:
            place: folder or URI of the database.
            settings: see `Table`.
            columns: values of the further columns, which decide their types.
        """
        fields = [pa.field(name, kind) for name, kind in _FIXED.items()]
        fields += [pa.field(name, _type_of(values)) for name, values in columns.items()]
        fields.append(pa.field("embedding", pa.list_(pa.float32(), settings["embedding_size"])))
        fields.append(pa.field("terms", pa.large_binary()))
        database = lancedb.connect(place, read_consistency_interval=_SEEN)
        database.create_table(NAME, schema=pa.schema(fields), mode="overwrite")  # one without settings is no index yet
        _write_settings(database, {"version": VERSION, **settings})
        return cls(place, database, {"version": VERSION, **settings})

    @classmethod
    def open(cls, place: str) -> "Table | None":
        """Open a table; None if there is none.

        Raises:
            UserError: it is of a later version of this package.
        """
        if "://" not in place and not Path(place, f"{SETTINGS}.lance").is_dir():
            return None
        database = lancedb.connect(place, read_consistency_interval=_SEEN)
        if SETTINGS not in database.list_tables().tables:
            return None
        settings = _read_settings(database)
        if settings["version"] != VERSION:
            raise UserError(
                f"--index={place}: found an index of version {settings['version']}, expected {VERSION}; make a new index"
            )
        return cls(place, database, settings)

    def refresh(self) -> None:
        """Read what other processes have written."""
        self._table.checkout_latest()
        self.settings = _read_settings(self._database)

    @property
    def database(self) -> "lancedb.DBConnection":
        """The database, with further tables."""
        return self._database

    @property
    def version(self) -> int:
        """Number of the version; each write adds one."""
        return self._table.version

    def move(self, root: str) -> None:
        """Record another folder of the images."""
        self.settings["root"] = root
        _write_settings(self._database, self.settings)

    def __len__(self) -> int:
        return self._table.count_rows()

    def count(self, where: str) -> int:
        """Return the number of rows that a filter leaves."""
        return self._table.count_rows(where)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, without embedding and terms."""
        return [name for name in self._table.schema.names if name not in HEAVY]

    def read(self, columns: Sequence[str] | None = None, where: str | None = None) -> "pa.Table":
        """Return rows as an Arrow table, sorted by id.

        Args:
            columns: names of the columns; None for all but embedding and terms.
            where: filter, an SQL expression of the columns.

        Raises:
            UserError: the filter is wrong.
        """
        names = list(self.columns if columns is None else columns)
        query = self._table.search().select(names if "id" in names else ["id", *names])
        with self._filtered(where):
            result = (query.where(where) if where else query).limit(max(len(self), 1)).to_arrow()
        return result.sort_by("id").select(names)

    def take(self, ids: Sequence[str], columns: Sequence[str]) -> "pa.Table":
        """Return columns of the rows of some ids, in their order.

        Raises:
            GoneError: a row is missing.
        """
        parts = [
            self._table.search().where(f"id IN ({', '.join(map(literal, ids[i : i + _IDS]))})")
            .select(list(dict.fromkeys(["id", *columns]))).limit(_IDS).to_arrow()
            for i in range(0, len(ids), _IDS)
        ]  # fmt: skip
        together = pa.concat_tables(parts)
        places = {name: place for place, name in enumerate(together["id"].to_pylist())}
        missing = [name for name in ids if name not in places]
        if missing:
            raise GoneError(
                f"{printable(missing[0])}: found no such image in {self.place}, expected one; see Index.images()"
            )
        return together.take([places[name] for name in ids]).select(list(columns))

    def closest(
        self, embedding_F: Float[np.ndarray, "F"], count: int, where: str | None, exact: bool
    ) -> tuple[list[str], Float[np.ndarray, "n F"]]:
        """Return the ids and embeddings of the images nearest to an embedding, by the vector index if not `exact`.

        Raises:
            UserError: the filter is wrong.
        """
        query: Any = self._table.search(embedding_F, vector_column_name="embedding")
        query = query.distance_type("cosine").limit(count)
        query = query.select(["id", "embedding", "_distance"])
        if exact:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(40).refine_factor(4)
        with self._filtered(where):
            result = (query.where(where, prefilter=True) if where else query).to_arrow()
        return result["id"].to_pylist(), as_matrix(result["embedding"])

    @contextlib.contextmanager
    def _filtered(self, where: str | None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            if not where:
                raise
            reason = textwrap.shorten(str(error).split("\n")[0].split(", /", 1)[0], 160, placeholder=" …")
            raise UserError(
                f"--where={printable(where)}: not understood ({printable(reason)}), expected a condition on "
                f"{', '.join(self.columns)}, such as path LIKE 'gate/%' AND time > 10; correct it"
            ) from error

    def upsert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, replacing those with the same ids, in one version; of no rows there is none."""
        if not rows:
            return
        batch = pa.Table.from_pylist(list(rows), schema=self._table.schema)
        self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(batch)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the rows of some ids."""
        for start in range(0, len(ids), _IDS):
            self._table.delete(f"id IN ({', '.join(map(literal, ids[start : start + _IDS]))})")

    def add_columns(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add empty columns that the table lacks.

        Raises:
            UserError: a column that it has is of another type.
        """
        new = {}
        for name, values in columns.items():
            kind = _type_of(values)
            if name not in self._table.schema.names:
                new[name] = (
                    f"CAST(NULL AS {'BIGINT' if kind == pa.int64() else 'DOUBLE' if kind == pa.float64() else 'STRING'})"
                )
                continue
            has = self._table.schema.field(name).type
            allowed = (pa.float64(), pa.int64()) if has == pa.float64() else (has,)
            if kind not in allowed and any(value is not None for value in values):
                shown = next(value for value in values if value is not None)
                raise UserError(
                    f"column {name}: found {shown!r}, expected {'text' if has == pa.string() else 'numbers'} as in the "
                    f"index {self.place}; correct the manifest, or make a new index"
                )
        if new:
            self._table.add_columns(new)

    def tidy(self, is_new: bool) -> None:
        """Join small files and remove older versions, of a new table at once."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about readers, which a new table does not have
            self._table.optimize(cleanup_older_than=datetime.timedelta(0) if is_new else KEPT)

    def build_vector_index(self) -> None:
        """Build an approximate index of the embeddings (inverted lists of their product quantisation)."""
        count = len(self)
        size = self.settings["embedding_size"]
        sub_vectors = next(n for n in (size // 8, size // 4, size // 2, size) if n and size % n == 0)
        kind = IvfPq(distance_type="cosine", num_partitions=max(1, round(count**0.5)), num_sub_vectors=sub_vectors)
        self._table.create_index("embedding", config=kind, replace=True)

    def has_vector_index(self) -> bool:
        """Return True if an approximate index was built."""
        return bool(self._table.list_indices())


def _read_settings(database: "lancedb.DBConnection") -> dict[str, Any]:
    return json.loads(database.open_table(SETTINGS).to_arrow()["json"][0].as_py())


def _write_settings(database: "lancedb.DBConnection", settings: Mapping[str, Any]) -> None:
    database.create_table(SETTINGS, data=pa.table({"json": [json.dumps(settings)]}), mode="overwrite")


def as_matrix(column: "pa.ChunkedArray") -> Float[np.ndarray, "n F"]:
    """Return a column of embeddings as float32 array, shape (n, F)."""
    size = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size) for chunk in column.chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.empty((0, size), np.float32)


def _type_of(values: Sequence[Any]) -> "pa.DataType":
    kinds = {type(value) for value in values if value is not None}
    return pa.int64() if kinds == {int} else pa.float64() if kinds and kinds <= {int, float} else pa.string()


@contextlib.contextmanager
def locked(place: str) -> Iterator[None]:
    """Keep other updates out of an index while the block runs; the system releases the lock when the process ends.

    Of several processes of one update, process 0 holds the lock.

    Raises:
        UserError: another update is in progress.
    """
    if "://" in place or not is_writer():  # the writes of an object store are atomic
        yield
        return
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, ".lock"), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"--index={place}: found another update in progress ({lock.read().strip() or 'unknown process'}), expected "
                "none; wait for its end"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield
