"""One training step on one device, several devices and several processes, and assertions that the results agree."""

import jax
import numpy as np
import optax
from tiny_training import batch_of, network, state_of, step_of

from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.device_map import AXIS, DeviceMap, pick_devices

MAPS = ("pmap", "shard_map")
# Cases of several processes; shard_map only in the dtype with the stricter tolerance.
ACROSS = (("float64", "pmap"), ("float64", "shard_map"), ("float32", "pmap"))


def start(config, dtype, one_block):
    return state_of(network(config, None, one_block), optax.sgd(1.0), dtype)


def on_one(config, dtype="float32", one_block=True, batch=None, augmentation=None):
    """Run the step without a device axis, with SGD of rate 1: parameters move by their gradient."""
    step = jax.jit(step_of(config, one_block=one_block, augmentation=augmentation))
    return jax.device_get(step(start(config, dtype, one_block), batch or batch_of(dtype)))


def on_devices(config, mode, count, dtype="float32", one_block=True, batch=None, augmentation=None):
    devices = DeviceMap(pick_devices(count), mode)
    step = devices.map(step_of(config, axis_name=AXIS, one_block=one_block, augmentation=augmentation))
    state = devices.replicate(start(config, dtype, one_block))
    return jax.device_get(step(state, devices.split(share(batch or batch_of(dtype)))))


def share(batch):
    """Return this process's rows of a global batch."""
    rows = len(batch.labels) // jax.process_count()
    rows_of_process = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    return Batch(batch.images[rows_of_process], batch.labels[rows_of_process])


def assert_same(result, expected, before, tolerance):
    """Compare metrics, gradients (parameter updates of SGD with rate 1) and statistics, each leaf relative to its norm."""
    (state, metrics), (want_state, want_metrics) = result, expected
    pairs = {
        "gradient": [jax.tree.map(np.subtract, s.params, before.params) for s in (state, want_state)],
        "statistics": [state.batch_stats, want_state.batch_stats],
        "metrics": [metrics, want_metrics],
    }
    for name, (have, want) in pairs.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(want)
        largest = max(np.abs(x).max() for _, x in flat)
        for (path, b), a in zip(flat, jax.tree.leaves(have), strict=True):
            # The gradient of a bias before a batch norm is rounding noise, so its own norm is no scale.
            size = max(np.linalg.norm(b), 1e-4 * largest)
            assert np.linalg.norm(a - b) <= tolerance * size, (name, jax.tree_util.keystr(path), a, b)


def assert_same_float64(result, expected, before):
    shares = ("accuracy", "positive_intra", "positive_cross")  # float32 by design
    for name in (name for name in shares if name in expected[1]):
        np.testing.assert_allclose(result[1][name], expected[1][name], rtol=1e-6)
    exact = [(state, {k: v for k, v in metrics.items() if k not in shares}) for state, metrics in (result, expected)]
    assert_same(*exact, before, 1e-10)
