"""P x K batches: their contents, fairness over a pass, and purity in (seed, step)."""

import numpy as np
import pytest

from cacenet_jax.data.sampler import PKSampler, look_alikes
from cacenet_jax.errors import UserError

SIZES = (1, 2, 3, 4, 5, 6, 7)  # images of each identity
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


def sampler(num_ids=3, images_per_id=4, seed=0, labels=LABELS):
    return PKSampler(labels, num_ids, images_per_id, seed)


@pytest.mark.parametrize("label_type", [np.int32, np.int64])
def test_batch_holds_k_images_side_by_side_of_p_identities(label_type):
    draw = sampler(labels=LABELS.astype(label_type))
    for step in range(30):
        keys_PK = draw.batch(step).reshape(3, 4)
        labels_PK = LABELS[keys_PK]
        assert (labels_PK == labels_PK[:, :1]).all()
        assert len(set(labels_PK[:, 0])) == 3
        for identity, keys_K in zip(labels_PK[:, 0], keys_PK, strict=True):
            if SIZES[identity] >= 4:
                assert len(set(keys_K)) == 4  # without replacement
            else:
                assert set(keys_K) <= set(np.flatnonzero(LABELS == identity))


def test_every_identity_is_visited_once_a_pass():
    labels = np.repeat(np.arange(6), 4)
    draw = sampler(num_ids=2, labels=labels)
    for turn in range(5):
        visited = [labels[draw.batch(3 * turn + place)[::4]] for place in range(3)]
        assert sorted(np.concatenate(visited)) == list(range(6))


def test_left_over_identities_change_from_pass_to_pass():
    """Seven identities in batches of three: each pass omits one, and none is omitted for long."""
    visits = np.bincount(np.concatenate([LABELS[sampler().batch(step)[::4]] for step in range(200)]), minlength=7)
    assert visits.sum() == 600 and visits.min() > 75 and visits.max() <= 100


def test_every_image_of_an_identity_is_drawn():
    seen = np.concatenate([sampler().batch(step) for step in range(60)])
    assert set(seen) == set(range(len(LABELS)))


def test_batch_is_a_pure_function_of_seed_and_step():
    one, two = sampler(), sampler()
    late = two.batch(17)
    for step in range(17):
        one.batch(step)
    np.testing.assert_array_equal(one.batch(17), late)
    np.testing.assert_array_equal(one.batch(17), late)
    assert any((one.batch(step) != sampler(seed=1).batch(step)).any() for step in range(3))
    assert len({tuple(one.batch(step)) for step in range(20)}) == 20


@pytest.mark.parametrize(("num_ids", "images_per_id", "steps"), [(3, 4, 2), (2, 2, 7), (7, 5, 1)])
def test_epoch_counts_images_and_is_never_empty(num_ids, images_per_id, steps):
    assert sampler(num_ids, images_per_id).steps_per_epoch == steps  # 28 images


@pytest.mark.parametrize(
    ("num_ids", "images_per_id", "message"),
    [
        (3, 1, r"images_per_id: found 1, expected at least 2"),
        (1, 4, r"num_ids: found 1, expected at least 2"),
        (8, 4, r"num_ids: found 8 identities a batch, but the training split has 7"),
    ],
)
def test_impossible_batches_are_refused(num_ids, images_per_id, message):
    with pytest.raises(UserError, match=message):
        sampler(num_ids, images_per_id)


def test_look_alikes_are_the_nearest_by_cosine_without_oneself():
    angles, lengths = np.array([0.0, 0.1, 1.0, 1.3, 3.0]), np.array([1.0, 5.0, 2.0, 0.1, 1.0])
    weights_FI = lengths * np.stack([np.cos(angles), np.sin(angles)])
    expected = [[1, 2], [0, 2], [3, 1], [2, 1], [3, 2]]
    np.testing.assert_array_equal(look_alikes(weights_FI, 2), expected)
    assert look_alikes(weights_FI, 9).shape == (5, 4)


def test_look_alikes_do_not_depend_on_the_last_bits_of_a_product():
    angles = np.array([0.0, 0.5, 0.5, 0.5, 2.0])
    for noise in ([0, 1e-13, 0, -1e-13, 0], [0, -1e-13, 1e-13, 0, 0]):
        shifted = angles + noise
        assert look_alikes(np.stack([np.cos(shifted), np.sin(shifted)]), 3)[0].tolist() == [1, 2, 3]


def test_a_batch_of_look_alikes_is_one_class_in_turn_and_others_of_its_row():
    labels, nearest = np.repeat(np.arange(6), 4), np.array([[(i + k) % 6 for k in (1, 2, 3)] for i in range(6)])
    draw = PKSampler(labels, 3, 4, 0, nearest)
    batches = [labels[draw.batch(step)[::4]] for step in range(60)]
    for chosen in batches:
        assert len(set(chosen)) == 3 and set(chosen[1:]) <= set(nearest[chosen[0]])
    assert all(sorted(c[0] for c in batches[i : i + 6]) == list(range(6)) for i in range(0, 60, 6))
    assert len({tuple(sorted(c[1:])) for c in batches if c[0] == 0}) == 3  # every choice comes
    np.testing.assert_array_equal(PKSampler(labels, 3, 4, 0, nearest).batch(17), draw.batch(17))
