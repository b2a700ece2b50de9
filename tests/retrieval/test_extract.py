"""Features keep the order of the images for every batch size and number of devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.models.scoring import Described
from cacenet_jax.retrieval.extract import extract, image_shapes, process_rows, round_up
from cacenet_jax.retrieval.term_store import Store

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 2, 4, 3), np.uint8)


def describe(scale, images):
    pixels = images.astype(jnp.float32)
    return Described(scale * pixels.mean(axis=(1, 2)), {"first": images[:, 0, 0], "none": None})


def padded_batches(batch):
    for start in range(0, len(PIXELS), batch):
        block = PIXELS[start : start + batch]
        yield np.concatenate([block, np.repeat(block[-1:], batch - len(block), axis=0)])


@pytest.mark.parametrize("location", ["device", "memory"])
@pytest.mark.parametrize(("devices", "batch"), [(1, 1), (1, 4), (1, 64), (4, 4), (8, 16)])
def test_features_are_those_of_each_image_in_order(devices, batch, location):
    mesh = global_mesh(devices)
    like = image_shapes(describe, 2.0, (2, 4, 3))
    assert like.embedding.shape == (3,) and like.terms["first"].dtype == np.uint8
    store = Store(like.terms, 11, batch, mesh, location)
    options = {"image_shape": (2, 4, 3), "batch": batch, "mesh": mesh, "store": store}
    embeddings = extract(describe, 2.0, padded_batches(batch), 11, **options)
    np.testing.assert_allclose(embeddings, 2 * PIXELS.astype(np.float32).mean(axis=(1, 2)), rtol=1e-6)
    stored = np.asarray(store.read(0, store.steps)["first"]).reshape(-1, 3)
    np.testing.assert_array_equal(stored[:11], PIXELS[:, 0, 0])


def test_a_batch_without_images_of_this_process_is_still_computed():
    """The step is collective, and another process may have images."""
    mesh = global_mesh(1)
    options = {"image_shape": (2, 4, 3), "batch": 8, "mesh": mesh, "store": None}
    embeddings = extract(describe, 2.0, iter([PIXELS[:8]]), 11, **options)
    assert embeddings.shape == (11, 3) and not embeddings[8:].any()


def test_one_process_reads_every_image_and_batches_are_rounded_to_the_devices():
    assert (
        round_up(64, global_mesh(8)) == 64 and round_up(65, global_mesh(8)) == 72 and round_up(3, global_mesh(1)) == 3
    )
    np.testing.assert_array_equal(process_rows(11, 8, global_mesh(8)), np.arange(11))
