"""Augmentation: probabilities, origin of pixels, and independence of the split of the batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.data.augment import Augment, augment, augment_one
from cacenet_jax.models.pixels import MEAN, STD, normalise_images

OFF = Augment(flip=0.0, pad=0, erase=0.0)
H, W = 12, 6


@pytest.fixture(scope="module")
def image():
    """Images whose pixels all differ, none black."""
    return (1 + np.arange(H * W * 3) % 251).astype(np.uint8).reshape(H, W, 3)


def by_hand(image):
    return (image / 255 - np.array(MEAN)) / np.array(STD)


def many(image, settings, count=400, seed=0):
    images = jnp.asarray(np.broadcast_to(image, (count, *image.shape)))
    return np.asarray(jax.jit(augment, static_argnums=3)(jax.random.key(seed), jnp.arange(count), images, settings))


def test_nothing_switched_on_is_normalisation(image):
    found = many(image, OFF, count=2)
    assert found.dtype == np.float32
    for one in found:
        np.testing.assert_allclose(one, by_hand(image), atol=2e-6)
    np.testing.assert_array_equal(found[0], normalise_images(jnp.asarray(image)))


@pytest.mark.parametrize("probability", [0.5, 1.0])  # 0 is above
def test_flip_has_its_probability_and_mirrors_columns(image, probability):
    found = many(image, OFF._replace(flip=probability))
    plain = np.abs(found - by_hand(image)).max(axis=(1, 2, 3)) < 1e-5
    mirrored = np.abs(found - by_hand(image[:, ::-1])).max(axis=(1, 2, 3)) < 1e-5
    assert (plain ^ mirrored).all()
    assert abs(mirrored.mean() - probability) < 0.1  # four standard deviations of 400 draws


def test_crops_are_windows_of_the_padded_image_and_reach_every_offset(image):
    pad = 2
    found = many(image, OFF._replace(pad=pad))
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    offsets = list(itertools.product(range(2 * pad + 1), repeat=2))
    windows = np.stack([by_hand(padded[y : y + H, x : x + W]) for y, x in offsets])
    gaps = np.abs(found[:, None] - windows[None]).max(axis=(2, 3, 4))
    assert (gaps.min(axis=1) < 1e-5).all()
    counts = np.bincount(gaps.argmin(axis=1), minlength=len(offsets))
    assert (counts > 0).all()
    assert np.abs(counts - 16).max() < 20  # uniform: 16 of 400 each, standard deviation 4


@pytest.mark.parametrize("probability", [0.5, 1.0])  # 0 is above
def test_erasing_has_its_probability_area_and_shape(probability):
    image = np.full((32, 16, 3), 255, np.uint8)
    settings = OFF._replace(erase=probability)
    found = many(image, settings)
    white = by_hand(image)[0, 0]
    erased = (found == 0).all(axis=-1)
    np.testing.assert_allclose(found[~erased], np.broadcast_to(white, (int((~erased).sum()), 3)), atol=2e-6)
    used = erased.any(axis=(1, 2))
    assert abs(used.mean() - probability) < 0.1
    tops = set()
    for mask in erased[used]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == tall * wide  # one full rectangle
        assert tall < 32 and wide < 16
        low, high = settings.erase_area
        assert (tall + 0.5) * (wide + 0.5) >= low * 512 and (tall - 0.5) * (wide - 0.5) <= high * 512
        assert (tall + 0.5) / (wide - 0.5) >= settings.erase_aspect
        assert (tall - 0.5) / (wide + 0.5) <= 1 / settings.erase_aspect
        tops.update({("top", rows[0] == 0), ("bottom", rows[-1] == 31)})
        tops.update({("left", columns[0] == 0), ("right", columns[-1] == 15)})
    assert len(tops) == 8  # rectangles touch every border at times, and at times do not


def test_result_does_not_depend_on_how_the_batch_is_split(image):
    settings, key = Augment(pad=2), jax.random.key(3)
    images = jnp.asarray(np.stack([np.roll(image, i, axis=0) for i in range(6)]))
    run = jax.jit(augment, static_argnums=3)
    whole = run(key, jnp.arange(6), images, settings)
    parts = [run(key, jnp.arange(6)[part], images[part], settings) for part in (slice(0, 2), slice(2, 6))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(
        whole[4], jax.jit(augment_one, static_argnums=2)(jax.random.fold_in(key, 4), images[4], settings)
    )


def test_images_and_steps_draw_apart(image):
    found = many(image, Augment(pad=2, erase=0.0), count=40)
    assert len(np.unique(found.reshape(40, -1), axis=0)) > 20
    assert (found != many(image, Augment(pad=2, erase=0.0), count=40, seed=1)).any()
