"""Blocks of the pair stage over a training batch that stay within a memory budget; see batch_grid.py.

Legend: B images of the global batch, R rows (images of one device), N nodes of a map, D channels.
"""

import math
from typing import NamedTuple

import jax

from cacenet_jax.errors import UserError

# Rows x nodes of a panel that a CPU holds in its cache (192 nodes, 2048 channels, two cores: 0.26 s against 0.28 s in one).
_CACHED = 768
# Bytes of mean neighbours that are encoded at a time, whatever the budget: more brings nothing.
_ENCODED = 64 * 2**20


class Plan(NamedTuple):
    """Blocks of a grid; see `make_plan`.

    Attributes:
        axis_name: device axis of the rows, None on one device.
        panel: rows whose cross blocks are computed at a time.
        keep: keep the cross blocks for the backward pass instead of computing them again.
        mirror: compute cross blocks for one order of a pair and transpose them for the other; one device, `keep`.
        encode: rows that are encoded at a time.
        fused: write the product of a cross block and a vector as a product and a sum, which GPUs and TPUs fuse
            and compute in float32; a CPU is faster with matrix products.
        nearest: as in `alignment.connect`: 0 for the ReLU, K for a top-K selection, which has no gradient.
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
    """Cut a grid so that what lives beside the maps, their gradients and the encoded grid stays within a budget.

    Args:
        rows: R, images of this device.
        columns: B, images of the global batch.
        nodes: N.
        channels: D.
        memory_mib: config.model.pair_memory_mib, memory of the temporaries.
        itemsize: bytes of an element of the keys.
        axis_name: device axis of the rows.
        share: the share of the memory that is for this.
        backend: what will run it, "cpu", "gpu" or "tpu"; JAX's default for None.

    Raises:
        UserError: the smallest blocks do not fit.
    """
    on_cpu = (backend or jax.default_backend()) == "cpu"
    grid = rows * columns
    vectors = 14 * grid * nodes * 4 + 3 * rows * nodes * nodes * 4  # weights, roots, both orders' cotangents; S
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
