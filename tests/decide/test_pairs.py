"""Which images are paired, and that their distances are those of a comparison."""

import numpy as np
import pytest

import cacenet_jax as cace
from cacenet_jax.decide.labelled import Labelled, read_manifest
from cacenet_jax.decide.open_set import search
from cacenet_jax.decide.pairs import describe, draw, in_turn, measure
from cacenet_jax.errors import UserError


def labelled(pids, camids, is_cross_camera=True):
    names = [f"{i}" for i in range(len(pids))]
    return Labelled(names, names, np.array(pids), np.array(camids), "m.csv", is_cross_camera)


def test_matching_pairs_are_of_two_cameras_and_every_other_pair_is_of_two_people():
    random = np.random.default_rng(0)
    pids, camids = random.integers(0, 9, 80), random.integers(0, 3, 80)
    drawn = draw(labelled(pids, camids))
    assert len(set(drawn.query_Q.tolist())) == len(drawn.query_Q)
    for query, row in zip(drawn.query_Q.tolist(), drawn.candidates_QK):
        candidates = row[row >= 0]
        same = candidates[pids[candidates] == pids[query]]
        matches = (pids == pids[query]) & (camids != camids[query])
        assert set(same.tolist()) <= set(np.flatnonzero(matches).tolist())
        assert len(same) == min(8, matches.sum())
        assert set(candidates.tolist()) - set(same.tolist()) == set(np.flatnonzero(pids != pids[query]).tolist())
        assert len(set(candidates.tolist())) == len(candidates)


def test_unknown_cameras_leave_nothing_out():
    for data in (labelled([0, 0, 1, 1], [-1] * 4), labelled([0, 0, 1, 1], [2] * 4, is_cross_camera=False)):
        drawn = draw(data)
        assert sorted(drawn.query_Q.tolist()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"m.csv: found 2 people and none with two images taken by two cameras"):
        draw(labelled([0, 0, 1, 1], [2] * 4))


def test_identities_take_turns():
    pids = np.array([0] * 7 + [1] * 2 + [2] * 3)
    order = in_turn(pids, seed=0)
    assert sorted(order.tolist()) == list(range(12))
    assert [sorted(pids[order[i : i + 3]]) for i in (0, 3)] == [[0, 1, 2]] * 2 and (pids[order[8:]] == 0).all()


def test_distances_are_those_of_a_comparison(made):
    reid = cace.load(made.run)
    described = describe(reid, read_manifest(made.images / "manifest.csv"))
    pairs = measure(reid, described)
    assert set(pairs) == {"individual", "pair", "mixed"}
    drawn = draw(described.labelled)
    (place,) = np.flatnonzero(drawn.candidates_QK[0] >= 0)[:1]  # first pair of the first query
    images = [described.labelled.images[i] for i in (drawn.query_Q[0], drawn.candidates_QK[0, place])]
    comparison = reid.compare(*images)
    for kind, some in pairs.items():
        assert some.distance_P[0] == pytest.approx(getattr(comparison, kind), abs=1e-5), kind
        same = some.first_P == some.second_P
        np.testing.assert_array_equal(some.same_P, same)
        assert some.distance_P[same].mean() < some.distance_P[~same].mean()


def test_searches_are_those_of_a_ranking_with_and_without_the_person(made):
    reid = cace.load(made.run)
    described = describe(reid, read_manifest(made.images / "manifest.csv"))
    data = described.labelled
    chosen = data.pids_n < 5
    searches = search(reid, described, chosen)
    assert searches.num_images == chosen.sum() == len(searches.absent_Q)  # every image is a query
    images = np.flatnonzero(chosen)
    for place, row in list(enumerate(in_turn(data.pids_n[images], 0).tolist()))[::6]:
        query = images[row]
        others = images[data.pids_n[images] != data.pids_n[query]]
        own = images[(data.pids_n[images] == data.pids_n[query]) & (data.camids_n[images] != data.camids_n[query])]
        absent = reid.rank(data.images[query], [data.images[i] for i in others])[0][0]
        there = np.concatenate([others, own])
        present = reid.rank(data.images[query], [data.images[i] for i in there])[0][0]
        assert searches.absent_Q[place] == pytest.approx(absent.mixed, abs=1e-5)
        assert searches.present_Q[place] == pytest.approx(present.mixed, abs=1e-5)
        assert searches.right_Q[place] == (there[present.index] in own)
    middle = np.median(searches.absent_Q)
    assert searches.unknown(middle) == np.mean([x >= middle for x in searches.absent_Q])
    assert searches.found_right(0.0) == 0 and searches.found_right(np.inf) == searches.right_Q.mean()
