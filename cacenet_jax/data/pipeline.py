"""Host input pipeline, which decodes, resizes and batches images as uint8. Augmentation happens on the device.

Each element of the grain MapDataset is a whole training batch (step -> record indices -> images). A batch is
therefore never split over worker processes, and training resumes exactly from any step.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8

from cacenet_jax.data.batch import Batch
from cacenet_jax.data.builders import Split
from cacenet_jax.data.images import decode
from cacenet_jax.data.part_labels import PartLabels
from cacenet_jax.data.sampler import PKSampler
from cacenet_jax.data.subsets import Subset

_STOPS = (signal.SIGINT, signal.SIGTERM)  # signals after which the run still needs its workers


def _decode_rows(
    split: Split, rows: Int[np.ndarray, "R"], height: int, width: int, parts: PartLabels | None
) -> UInt8[np.ndarray, "R H W C"]:
    """Decode records into one preallocated array, which is twice as fast as stacking decoded images.

    If `parts` is given, part labels are added as a fourth channel.
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
    """Return the number of threads per reading process.

    It is the process's share of the cores, but at least 2 and at most 4, because more threads would wait for the GIL.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // max(workers, 1), 2), 4)


class _ReadBatch:
    """Picklable callable that maps a step to this process's share of the batch."""

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
        self.process_rows = slice(process * share, (process + 1) * share)

    def __call__(self, step: int) -> Batch:
        keys = self.sampler.batch(int(step))[self.process_rows]
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
) -> Generator[Batch]:
    """Return an iterator over the batches of steps first_step .. last_step-1, decoded ahead of use.

    Args:
        subset: records to train on.
        sampler: sampler built from the labels of `subset`.
        height: image height in pixels.
        width: image width in pixels.
        first_step: first step; a resumed run sees the same batches as an uninterrupted one.
        last_step: end of the range, exclusive.
        workers: number of worker processes; 0 reads in threads of this process (faster on small machines).
        threads: number of threads per reading process; 0 uses `reading_threads`.
        process: index of this process among those that share the global batch.
        processes: number of processes that share the global batch.
        parts: part-label reader, which adds a fourth channel; None if unused.

    Returns:
        Iterator over uint8 batches with this process's share of the images.
    """
    read = _ReadBatch(subset, sampler, height, width, process, processes, parts)
    steps = grain.MapDataset.range(first_step, last_step).map(read)
    options = grain.ReadOptions(num_threads=threads or reading_threads(workers), prefetch_buffer_size=8)
    batches = steps.to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        batches = batches.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return _closing(batches, copied=workers > 0)


def _closing(batches: Any, copied: bool) -> Generator[Batch]:
    """Yield the batches, and end the worker processes when the generator is closed.

    Args:
        batches: a grain IterDataset.
        copied: copy each batch out of the shared memory of the workers, because that memory is released when they end.
    """
    batch = iterator = None
    try:
        with _stops_blocked():  # workers start here and inherit the mask; a stop may signal the whole process group
            iterator = iter(batches)
            atexit.register(iterator.close)  # batches that are left open would leave shared memory behind
            batch = next(iterator, None)
        while batch is not None:
            yield Batch(*map(_copied, batch)) if copied else batch
            batch = next(iterator, None)
    finally:
        del batch
        if iterator is not None:
            iterator.close()
            atexit.unregister(iterator.close)


def _copied(array: np.ndarray) -> np.ndarray:
    """Copy an array out of shared memory and remove its name.

    grain removes it when the array is deleted, but keeps the last arrays in reference cycles until the process ends, which
    reports them as leaked.
    """
    copy = np.array(array)
    if memory := getattr(array, "shm", None):
        array._unlink_on_del = False  # type: ignore[attr-defined]
        memory.unlink()
    return copy


@contextlib.contextmanager
def _stops_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """Make a worker process exit as soon as its parent exits for any reason, and at no signal that stops the run."""
    for number in _STOPS:  # in addition to the mask, which other threads of the worker may lack
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def evaluation_batches(
    subset: Subset, *, height: int, width: int, batch_size: int, parts: PartLabels | None = None
) -> Iterator[tuple[UInt8[np.ndarray, "B H W C"], Int[np.ndarray, "B"]]]:
    """Return an iterator over all records in order, in batches of equal size.

    The last batch is padded with copies of its last image.

    Args:
        subset: records to read.
        height: image height in pixels.
        width: image width in pixels.
        batch_size: B, the number of images per batch.
        parts: part-label reader, which adds a fourth channel; None if unused.

    Returns:
        Iterator over uint8 images, shape (B, H, W, C), and their positions in the subset, shape (B,); -1 for padding.
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
