"""Marks: kept beside an index, and the identities that follow from them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_identities_by_hand():
    marks = [Mark("a", "b", True), Mark("b", "c", True), Mark("c", "x", False), Mark("d", "e", True)]
    labelled = identities(marks, {"e": "ann", "f": "ann", "g": "marked-1"})
    assert labelled.contradictions == []
    assert labelled.identities == {
        "a": "marked-2", "b": "marked-2", "c": "marked-2", "d": "ann", "e": "ann", "f": "ann", "g": "marked-1"
    }  # fmt: skip
    assert identities([*marks, Mark("a", "c", False)], {}).contradictions == [["a", "b", "c"]]
    assert identities([Mark("a", "b", True)], {"a": "ann", "b": "bob"}) == ({}, [["a", "b"]])
    assert identities([Mark("a", "b", False)], {"a": "ann", "b": "ann"}).contradictions == [["a", "b"]]
    assert identities([], {}) == ({}, [])


PAIRS = list(itertools.combinations("abcdefg", 2))


@given(
    st.dictionaries(st.sampled_from(PAIRS), st.booleans()),
    st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("12")),
)
def test_identities_are_the_literal_transitive_closure(states, known):
    marks = [Mark(*pair, same) for pair, same in states.items()]
    names = sorted({name for pair in states for name in pair} | known.keys())
    same = np.eye(len(names), dtype=bool)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            same[i, j] |= states.get(tuple(sorted((a, b))), False) or (a in known and known[a] == known.get(b))
    for _ in names:
        same = (same.astype(int) @ same) > 0
    labelled = identities(marks, known)
    torn = {name for group in labelled.contradictions for name in group}
    for i, a in enumerate(names):
        group = [b for j, b in enumerate(names) if same[i, j]]
        parted = any(not mark.same and {mark.first, mark.second} <= set(group) for mark in marks)
        several = len({known[b] for b in group if b in known}) > 1
        assert (a in torn) == (parted or several)
        assert (a in labelled.identities) == (a not in torn and (len(group) > 1 or a in known))
        for j, b in enumerate(names):
            if a in labelled.identities and b in labelled.identities:
                assert (labelled.identities[a] == labelled.identities[b]) == bool(same[i, j])
        if a in labelled.identities and a in known:
            assert labelled.identities[a] == known[a]
