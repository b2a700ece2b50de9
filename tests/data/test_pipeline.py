"""Host pipeline: decoding, resuming, worker processes and shares of several processes."""

import absl.flags
import cv2
import numpy as np
import pytest

from cacenet_jax.data import pipeline
from cacenet_jax.data.builders import Records, Split
from cacenet_jax.data.pipeline import decode, evaluation_batches, training_batches
from cacenet_jax.data.sampler import PKSampler
from cacenet_jax.data.subsets import Subset
from cacenet_jax.errors import UserError

SIZE = {"height": 8, "width": 4}


def png(image_RGB):
    return cv2.imencode(".png", image_RGB[:, :, ::-1])[1].tobytes()


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (8, 4, 3), np.uint8)


def subset_of(count=24, corrupt=None):
    """Four identities 10, 20, 30, 40 behind a subset that skips every second record."""
    pids = 10 * (1 + np.arange(2 * count) // 2 % 4)
    images = [png(picture(i)) for i in range(2 * count)]
    if corrupt is not None:
        images[corrupt] = b"no image"
    names = [f"{i:04d}.png" for i in range(2 * count)]
    rows = [{"image": image, "name": name.encode()} for image, name in zip(images, names, strict=True)]
    split = Split(Records(rows), pids, np.zeros_like(pids), names)
    return Subset(split, np.arange(0, 2 * count, 2))


def batches_of(subset, first_step=0, last_step=4, **options):
    sampler = PKSampler(subset.labels, num_ids=2, images_per_id=3, seed=0)
    return list(training_batches(subset, sampler, first_step=first_step, last_step=last_step, **SIZE, **options))


def assert_same(found, expected):
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have.images, want.images)
        np.testing.assert_array_equal(have.labels, want.labels)


def test_batches_hold_the_samplers_images_with_their_classes():
    subset = subset_of()
    sampler = PKSampler(subset.labels, num_ids=2, images_per_id=3, seed=0)
    found = batches_of(subset)
    assert len(found) == 4
    for step, batch in enumerate(found):
        records = subset.indices[sampler.batch(step)]
        np.testing.assert_array_equal(batch.images, [picture(i) for i in records])
        np.testing.assert_array_equal(batch.labels, [subset.split.pids[i] // 10 - 1 for i in records])
        assert batch.images.dtype == np.uint8 and batch.labels.dtype == np.int32


def test_two_workers_give_the_batches_of_none():
    absl.flags.FLAGS.mark_as_parsed()  # grain reads flags when it starts a worker
    assert_same(batches_of(subset_of(), workers=2), batches_of(subset_of()))


def test_the_number_of_threads_does_not_change_the_batches():
    alone = batches_of(subset_of(), threads=1)
    for threads in (0, 3):
        assert_same(batches_of(subset_of(), threads=threads), alone)


def test_threads_share_the_cores_among_the_workers(monkeypatch):
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda pid: range(12), raising=False)
    assert [pipeline.reading_threads(workers) for workers in (0, 1, 4, 12)] == [4, 4, 3, 2]


def test_a_resumed_run_skips_what_was_seen():
    assert_same(batches_of(subset_of(), first_step=2), batches_of(subset_of())[2:])
    assert batches_of(subset_of(), first_step=4) == []


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_processes_make_up_the_whole_batch(processes):
    shares = [batches_of(subset_of(), process=p, processes=processes) for p in range(processes)]
    joined = [type(parts[0])(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(joined, batches_of(subset_of()))


def test_corrupt_bytes_name_the_image():
    with pytest.raises(UserError, match=r"0006\.png: found bytes that are no image"):
        batches_of(subset_of(count=8, corrupt=6), last_step=20)
    with pytest.raises(UserError, match=r"empty\.jpg: found bytes that are no image"):
        decode(b"", 8, 4, "empty.jpg")


@pytest.mark.parametrize("size", [(8, 4), (16, 8), (5, 3)])
def test_decoding_into_an_array_writes_there(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    images = np.zeros((3, 8, 4, 3), np.uint8)
    decode(png(image), 8, 4, "x.png", images[1])
    by_hand = cv2.resize(image, (4, 8), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(images[1], by_hand)
    assert not images[[0, 2]].any()


def test_decoding_keeps_rgb_and_resizes_to_height_by_width():
    image = np.zeros((16, 8, 3), np.uint8)
    image[:8] = (250, 20, 130)
    found = decode(png(image), 8, 4, "x.png")
    assert found.shape == (8, 4, 3)
    np.testing.assert_array_equal(found[:3], np.broadcast_to([250, 20, 130], (3, 4, 3)))
    np.testing.assert_array_equal(found[5:], 0)
    gray = cv2.imencode(".png", np.full((5, 5), 77, np.uint8))[1].tobytes()
    np.testing.assert_array_equal(decode(gray, 8, 4, "gray.png"), 77)


@pytest.mark.parametrize(("count", "batch_size"), [(6, 3), (7, 3), (2, 5)])
def test_evaluation_visits_every_record_once_in_order(count, batch_size):
    subset = subset_of(count)
    found = list(evaluation_batches(subset, batch_size=batch_size, **SIZE))
    assert all(len(images) == len(positions) == batch_size for images, positions in found)
    images, positions = (np.concatenate(x) for x in zip(*found, strict=True))
    assert list(positions) == [*range(count), *[-1] * (-count % batch_size)]
    np.testing.assert_array_equal(images[:count], [picture(i) for i in subset.indices])
    assert all((image == picture(subset.indices[-1])).all() for image in images[count:])
