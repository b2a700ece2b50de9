"""Feature extraction. Embeddings are returned on the host, and per-image terms are written to a store.

Terms are the arrays that the pair stage precomputes for each image, so that pairs can be compared cheaply.

Legend: n images, B images in a batch over all devices and processes, F embedding size.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.distributed.progress import track
from cacenet_jax.models.scoring import Described

# (variables, uint8 images on one device, shape (images, H, W, 3)) -> features of these images.
Describe = Callable[[Any, Any], Described]


@runtime_checkable
class TermSink(Protocol):
    """Destination of per-image terms, such as a `term_store.Store`."""

    def put(self, step: int, terms: Any) -> None:
        """Store the terms of batch `step`, given as device arrays whose leading axis B is sharded over the devices."""


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Round a batch size up to a multiple of the number of devices."""
    return -(-batch_size // mesh.size) * mesh.size


def process_rows(count: int, batch: int, mesh: Mesh) -> Int[np.ndarray, "rows"]:
    """Return the indices of the images that this process reads, in ascending order.

    A process reads its devices' share of each batch.

    Args:
        count: number of images.
        batch: B, a multiple of the number of devices in the mesh.
        mesh: devices of all processes.
    """
    images = np.arange(count)
    size = batch // mesh.size
    local = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    column = images % batch
    return images[(column >= local[0] * size) & (column < (local[-1] + 1) * size)]


def image_shapes(describe: Describe, variables: Any, image_shape: tuple[int, int, int]) -> Described:
    """Return the shapes and dtypes of one image's features, without the batch axis."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    features = jax.eval_shape(describe, variables, images)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), features)


def extract(
    describe: Describe,
    variables: Any,
    batches: Iterable[np.ndarray],
    count: int,
    *,
    image_shape: tuple[int, int, int],
    batch: int,
    mesh: Mesh,
    store: TermSink | None,
) -> Float[np.ndarray, "n F"]:
    """Extract the features of `count` images, with each batch sharded over the devices.

    Every process must call this function.

    Args:
        describe: function to run on each device; compiled once per function object.
        variables: first argument of `describe`, replicated over the devices.
        batches: batches of this process's uint8 images, in the order of `process_rows`. The last batch is padded.
        count: n.
        image_shape: (H, W, 3).
        batch: B, a multiple of the number of devices in the mesh.
        mesh: devices of all processes.
        store: destination of the terms; None discards them.

    Returns:
        Embeddings of all images, (n, F) float32, in every process.
    """
    share = batch // mesh.size * len(mesh.local_devices)
    step_fn = _compile_step(describe, mesh)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    images, steps = iter(batches), -(-count // batch)
    embedding_NF: np.ndarray | None = None  # one array from the start: joining batches would take twice its memory
    previous: tuple[int, Described] | None = None

    def keep(step: int, features: Described) -> None:
        nonlocal embedding_NF
        batch_BF = np.asarray(features.embedding)
        if embedding_NF is None:
            embedding_NF = np.empty((steps * batch, *batch_BF.shape[1:]), batch_BF.dtype)
        embedding_NF[step * batch : (step + 1) * batch] = batch_BF
        if store is not None:
            store.put(step, features.terms)

    for step in track(range(steps), "extracting features", steps, f"batches of {batch} images"):
        # This process may have no images in the last batch even if other processes do.
        local = next(images, None)
        local = np.zeros((share, *image_shape), np.uint8) if local is None else local
        features = step_fn(variables, jax.make_array_from_process_local_data(sharding, local, (batch, *image_shape)))
        if previous:
            keep(*previous)  # one batch late, so the copy overlaps with the computation of the next batch
        previous = step, features
    if previous:
        keep(*previous)
    if embedding_NF is None:
        raise ValueError("no images")
    return embedding_NF[:count]


@functools.lru_cache(maxsize=4)
def _compile_step(describe: Describe, mesh: Mesh) -> Any:
    """Compile `describe` for all devices; embeddings are gathered on every device and terms stay sharded."""
    axis = mesh.axis_names[0]

    def step(variables: Any, images: jax.Array) -> Described:
        features = describe(variables, images)
        return Described(jax.lax.all_gather(features.embedding, axis, tiled=True), features.terms)

    split = PartitionSpec(axis)
    specs: Any = Described(PartitionSpec(), split)  # type: ignore[arg-type]  # a tree of PartitionSpecs
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=specs, check_vma=False))
