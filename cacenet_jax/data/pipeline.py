"""From records to uint8 batches on the host: decode, resize, batch; augmentation happens on the device.

A training batch is drawn as a whole by a grain MapDataset (step -> record keys -> images), so that worker processes
cannot split it and training resumes exactly from a step.
"""

import os
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int, UInt8

from cacenet_jax.data.batch import Batch
from cacenet_jax.data.builders import Split
from cacenet_jax.data.images import decode
from cacenet_jax.data.part_labels import PartLabels
from cacenet_jax.data.sampler import PKSampler
from cacenet_jax.data.subsets import Subset


def _decode_rows(
    split: Split, rows: Int[np.ndarray, "R"], height: int, width: int, parts: PartLabels | None
) -> UInt8[np.ndarray, "R H W C"]:
    """Decodes records into one array: half the time of decoding them one by one and stacking.

    With `parts` there is a fourth channel, the label of each pixel's body part.
    """
    images_RHW3 = np.empty((len(rows), height, width, 3), np.uint8)
    labels_RHW1 = np.empty((len(rows), height, width, 0 if parts is None else 1), np.uint8)
    for row, image_HW3, labels_HW1 in zip(rows.tolist(), images_RHW3, labels_RHW1, strict=True):
        record, name = split.records[row], split.names[row]
        decode(record["image"], height, width, name, image_HW3)
        if parts is not None:
            labels_HW1[..., 0] = parts.read(record["parts"], name, height, width)
    return images_RHW3 if parts is None else np.concatenate([images_RHW3, labels_RHW1], axis=-1)


def reading_threads(workers: int = 0) -> int:
    """Threads of each reading process: its share of the cores, two to four; more would wait for Python's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // max(workers, 1), 2), 4)


class _ReadBatch:
    """Picklable step -> Batch, reading one process's share of the batch."""

    def __init__(
        self,
        subset: Subset,
        sampler: PKSampler,
        height: int,
        width: int,
        process: int,
        processes: int,
        parts: PartLabels | None = None,
    ):
        self.parts = parts
        self.split, self.indices, self.labels = subset.split, subset.indices, subset.labels
        self.sampler, self.height, self.width = sampler, height, width
        share = sampler.num_ids * sampler.images_per_id // processes
        self.mine = slice(process * share, (process + 1) * share)

    def __call__(self, step: int) -> Batch:
        keys = self.sampler.batch(int(step))[self.mine]
        images = _decode_rows(self.split, self.indices[keys], self.height, self.width, self.parts)
        return Batch(images, self.labels[keys].astype(np.int32))


def training_batches(
    subset: Subset,
    sampler: PKSampler,
    *,
    height: int,
    width: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    threads: int = 0,
    process: int = 0,
    processes: int = 1,
    parts: PartLabels | None = None,
) -> Iterator[Batch]:
    """Batches of the steps first_step .. last_step-1, decoded ahead.

    Args:
        subset: records to train on; the sampler's labels are the subset's.
        sampler: draws a step's records.
        height: rows of an image.
        width: columns of an image.
        first_step: where to begin; a resumed run gives the same batches as one that was never stopped.
        last_step: where to end.
        workers: worker processes, 0 for threads in this one (faster on small machines).
        threads: threads of each reading process, 0 for `reading_threads`.
        process: this process among those that share the global batch.
        processes: how many share it.
        parts: reads part labels into a fourth channel.

    Returns:
        Iterator of uint8 batches, this process's images alone.
    """
    read = _ReadBatch(subset, sampler, height, width, process, processes, parts)
    steps = grain.MapDataset.range(first_step, last_step).map(read)
    options = grain.ReadOptions(num_threads=threads or reading_threads(workers), prefetch_buffer_size=8)
    batches = steps.to_iter_dataset(options)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4))
    return iter(batches)


def evaluation_batches(
    subset: Subset, *, height: int, width: int, batch_size: int, parts: PartLabels | None = None
) -> Iterator[tuple[UInt8[np.ndarray, "B H W C"], Int[np.ndarray, "B"]]]:
    """Every record once, in order, in batches of one size; the last is filled up with copies of its last image.

    Returns:
        Iterator of uint8 images (B, H, W, 3), or with part labels as a fourth channel, and positions in the subset
        (B,), -1 where an image is filling.
    """
    count = len(subset.indices)
    num_batches = -(-count // batch_size)

    def read(batch: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(batch * batch_size, (batch + 1) * batch_size)
        rows = subset.indices[positions[positions < count]]
        images = _decode_rows(subset.split, rows, height, width, parts)
        if len(rows) < batch_size:
            images = np.concatenate([images, np.repeat(images[-1:], batch_size - len(rows), axis=0)])
        return images, np.where(positions < count, positions, -1)

    options = grain.ReadOptions(num_threads=reading_threads(), prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(num_batches).map(read).to_iter_dataset(options))
