"""Marks: kept beside an index, and the identities that follow from them."""

import datetime
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacenet_jax.index import marks
from cacenet_jax.index.marks import Mark, identities


def test_marks_are_kept_replaced_and_removed(reid, photographs, tmp_path):
    index = reid.index(photographs, tmp_path / "p.lance")
    names = index.images(columns=["id"])["id"].to_pylist()
    odd = next(name for name in names if "odd" in name)
    assert len(index.marks) == 0 and index.marks.all() == []
    index.marks.set(names[3], odd, True)
    index.marks.set(odd, names[4], False)
    index.marks.set(names[0], names[1], True)
    index.marks.set(odd, names[3], False)  # the other way round, it is the same pair
    index.marks.set(names[1], names[0], None)
    again = reid.open_index(index.place)
    assert again.marks.all() == sorted(Mark(*sorted((odd, name)), False) for name in names[3:5])
    assert again.marks.of(odd) == {names[3]: False, names[4]: False} and again.marks.of(names[0]) == {}
    with pytest.raises(ValueError, match="one photograph twice"):
        again.marks.set(odd, odd, True)
    index.update(photographs)
    assert len(reid.open_index(index.place).marks) == 2


def test_marks_of_several_processes_are_one_for_a_pair(reid, photographs, tmp_path):
    index = reid.index(photographs, tmp_path / "p.lance")
    other = reid.open_index(index.place)  # opened before there are marks
    assert other.marks.all() == []
    names = index.images(columns=["id"])["id"].to_pylist()
    index.marks.set(names[0], names[1], True)
    assert other.marks.all() == [Mark(names[0], names[1], True)]
    table = index.marks._table
    row = table.to_arrow().to_pylist()[0]
    table.add([row | {"same": False, "time": row["time"].replace("T", "U")}])  # both inserted the pair; this one later
    assert index.marks.all() == [Mark(names[0], names[1], False)] and len(index.marks) == 1
    assert index.marks.of(names[1]) == {names[0]: False}
    index.marks.set(names[0], names[1], None)
    assert index.marks.all() == []


def test_many_marks_stay_few_files(reid, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(marks, "_COMPACTED_EVERY", 10)
    monkeypatch.setattr(marks, "KEPT", datetime.timedelta(milliseconds=1))
    index = reid.index(photographs, tmp_path / "p.lance")
    names = index.images(columns=["id"])["id"].to_pylist()
    pairs = list(itertools.combinations(names, 2))[:30]
    for pair in pairs:
        index.marks.set(*pair, True)
    assert [mark[:2] for mark in index.marks.all()] == sorted(pairs)
    assert sum(path.is_file() for path in (tmp_path / "p.lance/marks.lance").rglob("*")) < 10


def test_identities_by_hand():
    made = [Mark("a", "b", True), Mark("b", "c", True), Mark("c", "x", False), Mark("d", "e", True)]
    labelled = identities(made, {"e": "ann", "f": "ann", "g": "marked-1"})
    assert labelled.contradictions == []
    assert labelled.identities == {
        "a": "marked-2", "b": "marked-2", "c": "marked-2", "d": "ann", "e": "ann", "f": "ann", "g": "marked-1"
    }  # fmt: skip
    assert identities([*made, Mark("a", "c", False)], {}).contradictions == [["a", "b", "c"]]
    assert identities([Mark("a", "b", True)], {"a": "ann", "b": "bob"}) == ({}, [["a", "b"]])
    assert identities([Mark("a", "b", False)], {"a": "ann", "b": "ann"}).contradictions == [["a", "b"]]
    assert identities([], {}) == ({}, [])


PAIRS = list(itertools.combinations("abcdefg", 2))


@given(
    st.dictionaries(st.sampled_from(PAIRS), st.booleans()),
    st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("12")),
)
def test_identities_are_the_literal_transitive_closure(states, known):
    made = [Mark(*pair, same) for pair, same in states.items()]
    names = sorted({name for pair in states for name in pair} | known.keys())
    same = np.eye(len(names), dtype=bool)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            same[i, j] |= states.get(tuple(sorted((a, b))), False) or (a in known and known[a] == known.get(b))
    for _ in names:
        same = (same.astype(int) @ same) > 0
    labelled = identities(made, known)
    torn = {name for group in labelled.contradictions for name in group}
    for i, a in enumerate(names):
        group = [b for j, b in enumerate(names) if same[i, j]]
        parted = any(not mark.same and {mark.first, mark.second} <= set(group) for mark in made)
        several = len({known[b] for b in group if b in known}) > 1
        assert (a in torn) == (parted or several)
        assert (a in labelled.identities) == (a not in torn and (len(group) > 1 or a in known))
        for j, b in enumerate(names):
            if a in labelled.identities and b in labelled.identities:
                assert (labelled.identities[a] == labelled.identities[b]) == bool(same[i, j])
        if a in labelled.identities and a in known:
            assert labelled.identities[a] == known[a]
