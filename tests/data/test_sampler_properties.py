"""Properties of P x K batches, for any small training split."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cacenet_jax.data.sampler import PKSampler, look_alikes


class Drawing(NamedTuple):
    labels: np.ndarray
    num_ids: int
    images_per_id: int
    seed: int

    def sampler(self):
        return PKSampler(*self)


@st.composite
def drawings(draw):
    """Between two and eight identities of one to six images each, in any order."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    labels = draw(st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist()))
    num_ids = draw(st.integers(2, len(sizes)))
    return Drawing(np.array(labels), num_ids, draw(st.integers(2, 4)), draw(st.integers(0, 2**31)))


steps = st.integers(0, 50)


@given(drawings(), steps)
def test_a_batch_is_p_identities_of_k_images(drawing, step):
    batch = drawing.sampler().batch(step)
    keys_PK = batch.reshape(drawing.num_ids, drawing.images_per_id)
    labels_PK = drawing.labels[keys_PK]
    assert (labels_PK == labels_PK[:, :1]).all() and len(set(labels_PK[:, 0])) == drawing.num_ids
    for label, keys_K in zip(labels_PK[:, 0], keys_PK, strict=True):
        available = np.count_nonzero(drawing.labels == label)
        if available >= drawing.images_per_id:
            assert len(set(keys_K)) == drawing.images_per_id  # without replacement


@given(drawings(), st.integers(0, 5))
def test_a_pass_visits_no_identity_twice(drawing, turn):
    identities = len(set(drawing.labels))
    length = identities // drawing.num_ids  # batches of a pass
    sampler = drawing.sampler()
    batches = [sampler.batch(turn * length + place) for place in range(length)]
    visited = drawing.labels[np.concatenate(batches)[:: drawing.images_per_id]]
    assert len(visited) == len(set(visited)) == length * drawing.num_ids
    if identities % drawing.num_ids == 0:
        assert set(visited) == set(drawing.labels)


@given(drawings(), st.lists(steps, max_size=6), steps)
def test_a_batch_depends_on_seed_and_step_alone(drawing, before, step):
    """The order of calls and a restart from any step change nothing."""
    sampler = drawing.sampler()
    for other in before:
        sampler.batch(other)
    np.testing.assert_array_equal(sampler.batch(step), drawing.sampler().batch(step))


@given(drawings(), st.integers(0, 3), st.integers(0, 5))
def test_look_alikes_come_from_the_pool_of_the_first_identity(drawing, more, turn):
    identities = len(set(drawing.labels))
    weights_FI = np.random.default_rng(drawing.seed).standard_normal((4, identities))
    nearest = look_alikes(weights_FI, drawing.num_ids - 1 + more)
    assert (nearest != np.arange(identities)[:, None]).all()
    sampler = PKSampler(*drawing, nearest=nearest)
    first = []
    for place in range(identities):
        chosen = drawing.labels[sampler.batch(turn * identities + place)[:: drawing.images_per_id]]
        assert len(set(chosen)) == drawing.num_ids and set(chosen[1:]) <= set(nearest[chosen[0]])
        first.append(chosen[0])
    assert sorted(first) == list(range(identities))  # each identity leads one batch of a pass
