"""Features of a set of images, in order, whatever the batch and the devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.retrieval.extract import Features, extract, image_shapes, my_rows, round_up
from cacenet_jax.retrieval.term_store import Store

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 2, 4, 3), np.uint8)


def describe(scale, images):
    wide = images.astype(jnp.float32)
    return Features(scale * wide.mean(axis=(1, 2)), {"first": images[:, 0, 0], "none": None})


def filled(batch):
    for start in range(0, len(PIXELS), batch):
        block = PIXELS[start : start + batch]
        yield np.concatenate([block, np.repeat(block[-1:], batch - len(block), axis=0)])


@pytest.mark.parametrize("place", ["device", "memory"])
@pytest.mark.parametrize(("devices", "batch"), [(1, 1), (1, 4), (1, 64), (4, 4), (8, 16)])
def test_features_are_those_of_each_image_in_order(devices, batch, place):
    mesh = global_mesh(devices)
    like = image_shapes(describe, 2.0, (2, 4, 3))
    assert like.embedding.shape == (3,) and like.terms["first"].dtype == np.uint8
    store = Store(like.terms, 11, batch, mesh, place)
    how = {"image_shape": (2, 4, 3), "batch": batch, "mesh": mesh, "store": store}
    found = extract(describe, 2.0, filled(batch), 11, **how)
    np.testing.assert_allclose(found, 2 * PIXELS.astype(np.float32).mean(axis=(1, 2)), rtol=1e-6)
    kept = np.asarray(store.run(0, store.steps)["first"]).reshape(-1, 3)
    np.testing.assert_array_equal(kept[:11], PIXELS[:, 0, 0])


def test_a_batch_without_images_of_this_process_is_still_computed():
    """Other processes have some: the step is collective."""
    mesh = global_mesh(1)
    how = {"image_shape": (2, 4, 3), "batch": 8, "mesh": mesh, "store": None}
    found = extract(describe, 2.0, iter([PIXELS[:8]]), 11, **how)
    assert found.shape == (11, 3) and not found[8:].any()


def test_one_process_reads_every_image_and_batches_suit_the_devices():
    assert (
        round_up(64, global_mesh(8)) == 64 and round_up(65, global_mesh(8)) == 72 and round_up(3, global_mesh(1)) == 3
    )
    np.testing.assert_array_equal(my_rows(11, 8, global_mesh(8)), np.arange(11))
