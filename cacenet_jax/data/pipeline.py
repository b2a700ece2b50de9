"""From records to uint8 batches on the host: decode, resize, batch; augmentation happens on the device.

A training batch is drawn as a whole by a grain MapDataset (step -> record keys -> images), so that worker processes
cannot split it and training resumes exactly from a step.
"""

from collections.abc import Iterator

import cv2
import grain
import numpy as np
from jaxtyping import Int, UInt8

from cacenet_jax.data.batch import Batch
from cacenet_jax.data.sampler import PKSampler
from cacenet_jax.data.splits import Subset
from cacenet_jax.errors import UserError


def decode(encoded: bytes, height: int, width: int, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """JPEG or PNG bytes to RGB pixels of the network's size (bilinear); a broken image is a UserError naming it."""
    # OpenCV answers bytes it cannot read with None, but no bytes at all with an exception of its own.
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None:
        raise UserError(f"{name}: found bytes that are no image, expected a JPEG or PNG; prepare the data set again")
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class _ReadBatch:
    """Picklable step -> Batch, reading one process's share of the batch."""

    def __init__(self, subset: Subset, sampler: PKSampler, height: int, width: int, process: int, processes: int):
        self.records, self.names = subset.split.records, subset.split.names
        self.indices, self.labels = subset.indices, subset.labels
        self.sampler, self.height, self.width = sampler, height, width
        share = sampler.num_ids * sampler.images_per_id // processes
        self.mine = slice(process * share, (process + 1) * share)

    def __call__(self, step: int) -> Batch:
        keys = self.sampler.batch(int(step))[self.mine]
        rows = [int(i) for i in self.indices[keys]]
        images = [decode(self.records[i]["image"], self.height, self.width, self.names[i]) for i in rows]
        return Batch(np.stack(images), self.labels[keys].astype(np.int32))


def training_batches(
    subset: Subset,
    sampler: PKSampler,
    *,
    height: int,
    width: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
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
        process: this process among those that share the global batch.
        processes: how many share it.

    Returns:
        Iterator of uint8 batches, this process's images alone.
    """
    read = _ReadBatch(subset, sampler, height, width, process, processes)
    steps = grain.MapDataset.range(first_step, last_step).map(read)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    batches = steps.to_iter_dataset(options)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4))
    return iter(batches)


def evaluation_batches(
    subset: Subset, *, height: int, width: int, batch_size: int
) -> Iterator[tuple[UInt8[np.ndarray, "B H W 3"], Int[np.ndarray, "B"]]]:
    """Every record once, in order, in batches of one size; the last is filled up with copies of its last image.

    Returns:
        Iterator of uint8 images (B, H, W, 3) and positions in the subset (B,), -1 where an image is filling.
    """
    names, records = subset.split.names, subset.split.records

    def read(i: int) -> np.ndarray:
        row = int(subset.indices[i])
        return decode(records[row]["image"], height, width, names[row])

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size)
    images = iter(grain.MapDataset.range(len(subset.indices)).map(read).to_iter_dataset(options))
    for start in range(0, len(subset.indices), batch_size):
        count = min(batch_size, len(subset.indices) - start)
        block = [next(images) for _ in range(count)]
        block += [block[-1]] * (batch_size - count)
        positions = np.full(batch_size, -1)
        positions[:count] = np.arange(start, start + count)
        yield np.stack(block), positions
