"""Marks of a person on pairs of photographs, kept beside an index: they show one person, or two.

Marks that agree give identities, for a manifest to train and to calibrate on.
"""

import datetime
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cacenet_jax.index.table import KEPT, literal

if TYPE_CHECKING:
    import lancedb

NAME = "marks"
_COMPACTED_EVERY = 50  # changes, each of which is a file
_SCHEMA = pa.schema(
    [("key", pa.string()), ("first", pa.string()), ("second", pa.string()), ("same", pa.bool_()), ("time", pa.string())]
)


class Mark(NamedTuple):
    """A marked pair.

    Attributes:
        first: name of a photograph; the smaller of the two names.
        second: name of the other one.
        same: True if both show one person, False if they show two.
    """

    first: str
    second: str
    same: bool


class Labelled(NamedTuple):
    """Identities that follow from marks.

    Attributes:
        identities: identity of each photograph that has one.
        contradictions: groups whose marks, or known identities, contradict each other; they have no identity.
    """

    identities: Mapping[str, str]
    contradictions: Sequence[Sequence[str]]


class Marks:
    """The marks of an index. Each change is one atomic version of a LanceDB table, which the first mark creates."""

    def __init__(self, database: "lancedb.DBConnection"):
        """Take the database of an index."""
        self._database, self._lock, self._changes = database, threading.Lock(), 0
        self._opened: lancedb.table.Table | None = None

    @property
    def _table(self) -> "lancedb.table.Table | None":
        """The table; None while nobody has marked anything, in this process or another."""
        if self._opened is None and NAME in self._database.list_tables().tables:
            self._opened = self._database.open_table(NAME)
        return self._opened

    def set(self, first: str, second: str, same: bool | None) -> None:
        """Mark a pair of photographs, replacing an earlier mark of the pair.

        Args:
            first: name of a photograph.
            second: name of another one.
            same: True if both show one person, False if they show two, None to remove the mark.

        Raises:
            ValueError: the names are equal.
        """
        if first == second:
            raise ValueError(f"{first!r}: found one photograph twice, expected two")
        first, second = sorted((first, second))
        key = json.dumps([first, second])
        with self._lock:
            table = self._table
            if table is None:
                table = self._database.create_table(NAME, schema=_SCHEMA, exist_ok=True)
            if same is None:
                table.delete(f"key = {literal(key)}")
            else:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
                row = {"key": key, "first": first, "second": second, "same": same, "time": now}
                merge = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(pa.Table.from_pylist([row], schema=_SCHEMA))
            self._changes += 1
            if self._changes % _COMPACTED_EVERY == 0:
                table.optimize(cleanup_older_than=KEPT)

    def __repr__(self) -> str:
        """Return the number as text."""
        return f"Marks({len(self):,} pairs)"

    def __len__(self) -> int:
        """Return the number of marked pairs."""
        return len(self.all())

    def all(self) -> list[Mark]:
        """Return all marks, sorted by name."""
        return self._read(None)

    def of(self, name: str) -> dict[str, bool]:
        """Return the marks of a photograph, by the name of the other one."""
        marks = self._read(f"first = {literal(name)} OR second = {literal(name)}")
        return {mark.second if name == mark.first else mark.first: mark.same for mark in marks}

    def _read(self, where: str | None) -> list[Mark]:
        """Return the marks that a filter leaves; of two that processes made of one pair at once, the later one."""
        table = self._table
        if table is None:
            return []
        query = table.search().select(["first", "second", "same", "time"])
        rows = (query.where(where) if where else query).limit(max(table.count_rows(), 1)).to_arrow().to_pylist()
        latest = {(row["first"], row["second"]): row["same"] for row in sorted(rows, key=lambda row: row["time"])}
        return sorted(Mark(*pair, same) for pair, same in latest.items())


def identities(marks: Sequence[Mark], known: Mapping[str, str]) -> Labelled:
    """Derive identities from marks.

    Photographs marked as of one person, directly or through others, form a group, as do those with one known identity.
    A group has the known identity of its photographs, or a new one. Photographs that were marked as of another person
    and nothing else stay without identity, because they may be of anyone else.

    Args:
        marks: marked pairs.
        known: known identities of photographs.
    """
    names = sorted({name for mark in marks for name in mark[:2]} | known.keys())
    place = {name: i for i, name in enumerate(names)}
    first_of: dict[str, str] = {}
    pairs = [(mark.first, mark.second) for mark in marks if mark.same]
    pairs += [(first_of.setdefault(identity, name), name) for name, identity in sorted(known.items())]
    edges = np.array([(place[a], place[b]) for a, b in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(names), len(names)))
    group_n = connected_components(graph, directed=False)[1]
    members: dict[int, list[str]] = {}
    for name in names:
        members.setdefault(int(group_n[place[name]]), []).append(name)
    broken = {
        int(group_n[place[mark.first]])
        for mark in marks
        if not mark.same and group_n[place[mark.first]] == group_n[place[mark.second]]
    }
    labelled: dict[str, str] = {}
    contradictions, taken, number = [], set(known.values()), 0
    for group, group_names in members.items():
        has = {known[name] for name in group_names if name in known}
        if group in broken or len(has) > 1:
            contradictions.append(group_names)
        elif has or len(group_names) > 1:
            if not has:
                number = next(n for n in range(number + 1, number + len(taken) + 2) if f"marked-{n}" not in taken)
            labelled |= dict.fromkeys(group_names, has.pop() if has else f"marked-{number}")
    return Labelled(labelled, contradictions)
