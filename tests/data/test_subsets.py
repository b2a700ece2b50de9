"""Validation holds out identities, with one query per camera of each."""

import numpy as np
import pytest

from cacenet_jax.data.builders import Records, Split
from cacenet_jax.data.subsets import Subset, all_records, cut_validation
from cacenet_jax.errors import UserError


def split_of(num_identities=10, per_identity=6, cameras=3, label_type=np.int64):
    rng = np.random.default_rng(0)
    pids = rng.permutation(np.repeat(7 * np.arange(num_identities) + 3, per_identity)).astype(label_type)
    camids = rng.integers(0, cameras, len(pids)).astype(label_type)
    return Split(Records([]), pids, camids, [f"{i}.jpg" for i in range(len(pids))])


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("label_type", [np.int32, np.int64])
def test_identities_are_disjoint_and_every_record_is_used_once(share, label_type):
    split = split_of(label_type=label_type)
    parts = cut_validation(split, share, seed=0)
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(len(split)))
    held = set(parts.query.pids) | set(parts.gallery.pids)
    assert not held & set(parts.train.pids)
    assert len(held) == max(round(share * 10), 2) and parts.train.num_identities == 10 - len(held)


def test_query_is_one_image_of_each_camera_of_each_held_out_identity():
    split = split_of()
    parts = cut_validation(split, 0.4, seed=0)
    found = sorted(zip(parts.query.pids, parts.query.camids, strict=True))
    held = np.isin(split.pids, parts.query.pids)
    assert found == sorted(set(zip(split.pids[held], split.camids[held], strict=True)))


def test_share_zero_holds_out_nobody():
    parts = cut_validation(split_of(), 0.0, seed=0)
    assert len(parts.query.indices) == len(parts.gallery.indices) == 0
    assert len(parts.train.indices) == 60


def test_the_seed_decides_who_is_held_out():
    held = [tuple(sorted(set(cut_validation(split_of(), 0.3, seed).query.pids))) for seed in (0, 0, 1, 2, 3)]
    assert held[0] == held[1] and len(set(held)) > 2


@pytest.mark.parametrize("share", [0.9, 0.99, 1.0, -0.1])
def test_a_share_that_leaves_too_few_is_refused(share):
    with pytest.raises(UserError, match=r"val_share: found .* of 10 identities"):
        cut_validation(split_of(), share, seed=0)


@pytest.mark.parametrize("num_identities", [0, 1])
def test_one_identity_is_too_few_to_train_on(num_identities):
    with pytest.raises(UserError, match=f"found {num_identities} identit"):
        cut_validation(split_of(num_identities), 0.0, seed=0)


def test_labels_are_classes_in_ascending_order_of_identity():
    split = split_of()
    subset = Subset(split, np.flatnonzero(split.pids > 20))
    names = sorted(set(subset.pids))
    assert [names[label] for label in subset.labels] == list(subset.pids)
    np.testing.assert_array_equal(all_records(split).pids, split.pids)
    np.testing.assert_array_equal(all_records(split).camids, split.camids)


def test_summary_changes_with_a_name_or_a_label_and_with_nothing_else():
    def of(pids, names):
        return all_records(Split(Records([]), np.array(pids), np.array([1, 2, 1]), names)).summary()

    first = of([1, 1, 2], ["a", "b", "c"])
    assert first == of([1, 1, 2], ["a", "b", "c"]) and first["images"] == 3 and first["identities"] == 2
    assert first["sha256"] != of([1, 2, 2], ["a", "b", "c"])["sha256"]
    assert first["sha256"] != of([1, 1, 2], ["a", "b", "d"])["sha256"]


def test_consecutive_identities_are_held_out_together():
    held = set(cut_validation(split_of(12), 0.3, seed=0, group=4).query.pids)
    places = sorted((pid - 3) // 7 for pid in held)
    assert places == list(range(places[0], places[0] + 4)) and places[0] % 4 == 0
    with pytest.raises(UserError, match=r"val_group: found 12"):
        cut_validation(split_of(12), 0.3, seed=0, group=12)
