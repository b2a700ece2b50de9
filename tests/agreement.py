"""One training step in several ways, and what it means that they agree; for the tests of devices and of processes."""

import jax
import numpy as np
import optax
from tiny_training import batch_of, network, state_of, step_of

from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.device_map import AXIS, DeviceMap, pick_devices

MAPS = ("pmap", "shard_map")
# Of several processes; the second map in the type with the stricter limit.
ACROSS = (("float64", "pmap"), ("float64", "shard_map"), ("float32", "pmap"))


def start(config, dtype, one_block):
    return state_of(network(config, None, one_block), optax.sgd(1.0), dtype)


def on_one(config, dtype="float32", one_block=True, batch=None, augmentation=None):
    """The step without any device axis; SGD of rate 1, so that parameters move by their gradient."""
    step = jax.jit(step_of(config, one_block=one_block, augmentation=augmentation))
    return jax.device_get(step(start(config, dtype, one_block), batch or batch_of(dtype)))


def on_devices(config, how, count, dtype="float32", one_block=True, batch=None, augmentation=None):
    devices = DeviceMap(pick_devices(count), how)
    step = devices.map(step_of(config, axis_name=AXIS, one_block=one_block, augmentation=augmentation))
    state = devices.replicate(start(config, dtype, one_block))
    return jax.device_get(step(state, devices.split(share(batch or batch_of(dtype)))))


def share(batch):
    """This process's rows of a global batch."""
    rows = len(batch.labels) // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    return Batch(batch.images[mine], batch.labels[mine])


def assert_same(found, expected, before, tolerance):
    """Metrics, gradients (what SGD of rate 1 moved) and statistics, each leaf relative to its size."""
    (state, metrics), (want_state, want_metrics) = found, expected
    pairs = {
        "gradient": [jax.tree.map(np.subtract, s.params, before.params) for s in (state, want_state)],
        "statistics": [state.batch_stats, want_state.batch_stats],
        "metrics": [metrics, want_metrics],
    }
    for name, (have, want) in pairs.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(want)
        largest = max(np.abs(x).max() for _, x in flat)
        for (path, b), a in zip(flat, jax.tree.leaves(have), strict=True):
            # A leaf of rounding noise alone (a bias before a norm) has no size of its own.
            size = max(np.linalg.norm(b), 1e-4 * largest)
            assert np.linalg.norm(a - b) <= tolerance * size, (name, jax.tree_util.keystr(path), a, b)


def assert_same_float64(found, expected, before):
    shares = ("accuracy", "positive_intra", "positive_cross")  # float32 by design
    for name in (name for name in shares if name in expected[1]):
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-6)
    exact = [(state, {k: v for k, v in metrics.items() if k not in shares}) for state, metrics in (found, expected)]
    assert_same(*exact, before, 1e-10)
