"""Feature extraction: embeddings on the host, per-image terms of the pair stage in a store.

Legend: n images, B images of a batch over all devices and processes, F embedding size.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.models.scoring import Described

# (variables, uint8 images (B, H, W, 3) of one device) -> features.
Describe = Callable[[Any, Any], Described]


@runtime_checkable
class TermSink(Protocol):
    """Destination of per-image terms, for example a `term_store.Store`."""

    def put(self, step: int, terms: Any) -> None:
        """Store the terms of a batch: device arrays with leading axis B, split over the devices."""


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Round a batch size up to a multiple of the number of devices."""
    return -(-batch_size // mesh.size) * mesh.size


def process_rows(count: int, batch: int, mesh: Mesh) -> Int[np.ndarray, "rows"]:
    """Return the indices, ascending, of the images that this process reads: its devices' columns of each batch.

    Args:
        count: number of images.
        batch: B, a multiple of the mesh's devices.
        mesh: devices of all processes.
    """
    images = np.arange(count)
    size = batch // mesh.size
    local = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    column = images % batch
    return images[(column >= local[0] * size) & (column < (local[-1] + 1) * size)]


def image_shapes(describe: Describe, variables: Any, image_shape: tuple[int, int, int]) -> Described:
    """Return shapes and dtypes of one image's features, without a leading axis."""
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
    """Extract features of `count` images, each batch split over the devices; every process calls it.

    Args:
        describe: per-device function; compiled once for each function object.
        variables: its first argument, replicated over the devices.
        batches: uint8 images of this process, in the order of `process_rows`; equal batch sizes, the last one padded.
        count: n.
        image_shape: (H, W, 3).
        batch: B, a multiple of the mesh's devices.
        mesh: devices of all processes.
        store: destination of the terms; None if the network has no pair stage.

    Returns:
        Embeddings of all images, (n, F) float32, in every process.
    """
    share = batch // mesh.size * len(mesh.local_devices)
    step_fn = _compile_step(describe, mesh)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    images, steps = iter(batches), -(-count // batch)
    embeddings: list[np.ndarray] = []
    previous: tuple[int, Described] | None = None

    def keep(step: int, features: Described) -> None:
        embeddings.append(np.asarray(features.embedding))
        if store is not None:
            store.put(step, features.terms)

    for step in range(steps):
        # In the last batch this process may have no images where another has some.
        local = next(images, None)
        local = np.zeros((share, *image_shape), np.uint8) if local is None else local
        features = step_fn(variables, jax.make_array_from_process_local_data(sharding, local, (batch, *image_shape)))
        if previous:
            keep(*previous)  # one batch late, so that the copy overlaps with the next batch's computation
        previous = step, features
    if previous:
        keep(*previous)
    return np.concatenate(embeddings)[:count]


@functools.lru_cache(maxsize=4)
def _compile_step(describe: Describe, mesh: Mesh) -> Any:
    """Map `describe` over the devices: embeddings are gathered on all, terms stay where they were computed."""
    axis = mesh.axis_names[0]

    def step(variables: Any, images: jax.Array) -> Described:
        features = describe(variables, images)
        return Described(jax.lax.all_gather(features.embedding, axis, tiled=True), features.terms)

    split = PartitionSpec(axis)
    specs: Any = Described(PartitionSpec(), split)  # type: ignore[arg-type]  # a tree of specifications
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=specs, check_vma=False))
