"""Block sizes that keep the training grid of pairs within a memory budget; see batch_grid.py.

Legend: B images of the global batch, R rows (local images), N nodes of a map, D channels.
"""

import math
from typing import NamedTuple

import jax

from cacenet_jax.errors import UserError

# Maximum rows x nodes of a panel on a CPU, for the cache. With 192 nodes, 2048 channels and 2 cores, a grid takes
# 0.26 s instead of 0.28 s with a single panel.
_CACHED = 768
# Maximum bytes of mean neighbours encoded at a time; larger blocks are not faster.
_ENCODED = 64 * 2**20


class Plan(NamedTuple):
    """Execution plan for a grid; see `make_plan`.

    Attributes:
        axis_name: device axis of the rows, or None on a single device.
        panel: number of rows whose cross blocks are computed at a time.
        keep: keep the cross blocks for the backward pass instead of recomputing them.
        mirror: compute the cross block of one ordering of a pair and transpose it for the other. Requires `keep` and a
            single device.
        encode: number of rows encoded at a time.
        fused: compute the product of a cross block and a vector as an elementwise product and a sum, which GPUs and
            TPUs fuse and compute in float32. On a CPU, matrix products are faster.
        nearest: as in `alignment.connect`: 0 for the ReLU, or K for a top-K selection, which has no gradient.
    """

    axis_name: str | None
    panel: int
    keep: bool
    mirror: bool
    encode: int
    fused: bool = False
    nearest: int = 0


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]


def make_plan(
    rows: int,
    columns: int,
    nodes: int,
    channels: int,
    memory_mib: float,
    itemsize: int = 4,
    axis_name: str | None = None,
    share: float = 1.0,
    backend: str | None = None,
) -> Plan:
    """Choose block sizes that keep the temporaries of a grid within a memory budget.

    The feature maps, their gradients and the encoded grid do not count as temporaries.

    Args:
        rows: R, number of local images.
        columns: B, number of images in the global batch.
        nodes: N, number of nodes of a map.
        channels: D, number of channels.
        memory_mib: memory budget for temporaries in MiB, config.model.pair_memory_mib.
        itemsize: bytes per key element.
        axis_name: device axis of the rows, or None on a single device.
        share: fraction of the budget available to the grid.
        backend: target backend, "cpu", "gpu" or "tpu", or None for JAX's default backend.

    Raises:
        UserError: if the smallest blocks exceed the budget.
    """
    on_cpu = (backend or jax.default_backend()) == "cpu"
    grid = rows * columns
    vectors = 14 * grid * nodes * 4 + 3 * rows * nodes * nodes * 4  # weights, roots and cotangents (both orders); S
    room = int(memory_mib * share * 2**20) - vectors
    panel_bytes = lambda p: p * columns * nodes * nodes * (12 + 2 * itemsize)
    encode_bytes = lambda p: 24 * p * columns * channels
    least = max(panel_bytes(1), encode_bytes(1))
    if room < least:
        expected = math.ceil((vectors + least) / share / 2**20)
        raise UserError(
            f"config.model.pair_memory_mib: found {memory_mib:g}, expected at least {expected} for {rows} x {columns} pairs "
            f"of {nodes} nodes; raise it or lower config.data.num_ids"
        )
    kept = grid * nodes * nodes * itemsize
    panels = [p for p in _divisors(rows) if panel_bytes(p) <= room]
    if on_cpu:
        panels = [p for p in panels if p * nodes <= _CACHED] or panels[-1:]
    keeping = [p for p in panels if kept + max(panel_bytes(p), encode_bytes(1)) <= room]
    keep, panel = bool(keeping), (keeping or panels)[0]
    left = room - (kept if keep else 0)
    encode = [p for p in _divisors(rows) if encode_bytes(p) <= left and 4 * p * columns * channels <= _ENCODED]
    mirror = keep and on_cpu and rows == columns and panel < rows
    return Plan(axis_name, panel, keep, mirror, (encode or [1])[0], not on_cpu)
