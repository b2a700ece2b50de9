"""Groups of photographs: against a literal average linkage, known people, and photographs that cannot be one person."""

import csv
import itertools

import numpy as np
import pytest
from browser import parsed
from command_in_process import run_main
from own_images import images
from tiny_index import NAMES

from cacenet_jax.errors import UserError
from cacenet_jax.index import groups
from cacenet_jax.index.groups import Groups, cannot_link, group, pairwise_f


def people(counts, seed=0, noise=0.25, size=32):
    """Embeddings around one random direction a person, and the persons."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(counts), size))
    truth = np.repeat(np.arange(len(counts)), counts)
    embedding = centres[truth] / np.linalg.norm(centres[truth], axis=1, keepdims=True)
    embedding = embedding + noise * rng.standard_normal(embedding.shape) / size**0.5
    order = rng.permutation(len(truth))
    return (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)[order], truth[order]


def literal_average_linkage(distance, cut):
    """Join the two groups with the smallest mean distance, as long as it is below the cut."""
    members = [[i] for i in range(len(distance))]
    while len(members) > 1:
        mean, a, b = min(
            (np.mean([distance[i, j] for i in members[a] for j in members[b]]), a, b)
            for a, b in itertools.combinations(range(len(members)), 2)
        )
        if mean >= cut:
            break
        members[a] += members.pop(b)
    labels = np.empty(len(distance), int)
    for label, group_ in enumerate(members):
        labels[group_] = label
    return labels


def same(labels):
    return labels[:, None] == labels[None]


def test_people_who_are_far_apart_are_found():
    embedding, truth = people([12, 9, 7, 5, 4, 4] + [8] * 14)
    labels, low, high = group(embedding)
    assert pairwise_f(labels, truth) == 1 and low <= 20 <= high
    assert (np.diff(np.bincount(labels)) <= 0).all()  # the largest first


@pytest.mark.parametrize("noise", [0.5, 1.0, 1.6])
def test_labels_are_those_of_the_literal_average_linkage(noise):
    embedding, _ = people([6, 5, 4, 3, 1], seed=3, noise=noise)
    distance = groups.distances(embedding)
    np.testing.assert_array_equal(distance, distance.T)
    assert (np.diag(distance) == 0).all() and 0 <= distance.min() and distance.max() <= 1
    labels, low, high = group(embedding)
    np.testing.assert_array_equal(same(labels), same(literal_average_linkage(distance, groups.CUT)))
    assert len(np.unique(literal_average_linkage(distance, groups.CUT + groups.SPREAD))) == low
    assert len(np.unique(literal_average_linkage(distance, groups.CUT - groups.SPREAD))) == high


def test_photographs_of_one_frame_are_different_people():
    embedding, truth = people([8, 8], noise=0.1)
    pair = np.flatnonzero(truth == 0)[:2]
    alone, _, _ = group(embedding)
    assert alone[pair[0]] == alone[pair[1]]
    labels, low, high = group(embedding, [pair])
    assert labels[pair[0]] != labels[pair[1]] and len(np.unique(labels)) >= 3 and low <= len(np.unique(labels)) <= high
    rows = [{"path": "a", "frame": 1, "box": None}, {"path": "a", "frame": 1, "box": [0, 0, 1, 1]}]
    rows += [{"path": "a", "frame": 2, "box": None}, {"path": "b", "frame": None, "box": None}]
    (members,) = cannot_link(rows)
    assert members.tolist() == [0, 1]


def test_pairwise_f_by_hand():
    """Four pairs in groups, of which two are right; three pairs of one person."""
    labels, truth = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    precision, recall = 2 / 4, 2 / 4
    assert pairwise_f(labels, truth) == pytest.approx(2 * precision * recall / (precision + recall))
    assert pairwise_f(np.arange(3), np.arange(3)) == 1 and pairwise_f(np.arange(3), np.zeros(3, int)) == 0


def test_few_and_too_many_photographs(monkeypatch):
    assert group(np.ones((1, 4), np.float32) / 2)[0].tolist() == [0]
    assert len(group(np.eye(2, dtype=np.float32))[0]) == 2
    monkeypatch.setattr(groups, "MOST", 3)
    with pytest.raises(UserError, match="found 4 photographs, expected 1 to 3"):
        group(np.eye(4, dtype=np.float32))
    with pytest.raises(UserError, match="found 0 photographs"):
        group(np.empty((0, 4), np.float32))


def test_the_index_and_the_command_group_alike(network, reid, photographs, tmp_path):
    index = reid.index(photographs, tmp_path / "p.lance")
    found = index.groups()
    assert isinstance(found, Groups) and sorted(found.ids) == sorted(NAMES)
    assert found.low <= found.best <= found.high and len(found) == found.best == len(set(found.labels.tolist()))
    assert sorted(name for number in range(found.best) for name in found[number]) == sorted(NAMES)
    done = run_main(
        tmp_path, "--mode=group", f"--workdir={network.workdir}", f"--index={index.place}", f"--output={tmp_path / 'o'}"
    )
    assert done.returncode == 0, done.stderr
    assert f"25 photographs in {found.best} groups, {found.low} to {found.high} at other cuts" in done.stdout
    shown = parsed(tmp_path / "o" / "groups.html")
    assert len(shown.images) == sum(min(len(found[i]), 12) for i in range(found.best))
    assert f"in {found.best} groups, {found.low} to {found.high} at other cuts." in " ".join(shown.text.split())
    with open(tmp_path / "o" / "groups.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    root = photographs.resolve()
    by_path = {str(root / name): label for name, label in zip(found.ids, found.labels)}
    assert {row["path"]: int(row["identity"]) for row in rows} == by_path
    again = reid.index(
        tmp_path / "o" / "groups.csv", tmp_path / "again.lance"
    )  # the corrected manifest is one to index
    assert len(again) == 25 and again.images(columns=["identity"])["identity"].to_pylist().count(0) == len(found[0])
    for cut in ("0", "1.5"):
        done = run_main(
            tmp_path, "--mode=group", f"--workdir={network.workdir}", f"--index={index.place}", f"--cut={cut}"
        )
        assert done.returncode == 2 and "cut: found" in done.stderr and done.stderr.count("\n") == 1


def test_no_photographs_left_by_a_filter(reid, tmp_path):
    index = reid.index(images(tmp_path / "i", ["a.png"]), tmp_path / "i.lance")
    with pytest.raises(UserError, match="found 0 photographs"):
        index.groups(where="path = 'nothing'")
