"""Features of a set of images: embeddings on the host, per-image terms of the pair stage in a store.

Legend: n images, B images of a batch over all devices and processes, F embedding size.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.models.cacenet import Described

# Variables and uint8 images (B, H, W, 3) of one device to their features.
Describe = Callable[[Any, Any], Described]


@runtime_checkable
class TermSink(Protocol):
    """Destination of per-image terms, for example a `term_store.Store`."""

    def put(self, step: int, terms: Any) -> None:
        """Store the terms of a batch: device arrays with leading axis B, split over the devices."""


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The batch size, or the next one that the devices divide."""
    return -(-batch_size // mesh.size) * mesh.size


def my_rows(count: int, batch: int, mesh: Mesh) -> Int[np.ndarray, "rows"]:
    """Which of `count` images this process reads, in order: its devices' columns of every batch."""
    images = np.arange(count)
    size = batch // mesh.size
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    column = images % batch
    return images[(column >= mine[0] * size) & (column < (mine[-1] + 1) * size)]


def image_shapes(describe: Describe, variables: Any, image_shape: tuple[int, int, int]) -> Described:
    """Shapes and types of one image's features, without a leading axis."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    found = jax.eval_shape(describe, variables, images)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found)


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
    """Describes `count` images, each batch split over the devices; every process calls it.

    Args:
        describe: what a device does with its share; one function object compiles once.
        variables: its first argument, on every device.
        batches: uint8 images of this process, in the order of `my_rows`; batches of equal size, the last one filled.
        count: n.
        image_shape: (H, W, 3).
        batch: B, a multiple of the mesh's devices.
        mesh: the devices.
        store: gets the terms; None where there are none.

    Returns:
        The embeddings of all images, in every process, float32.
    """
    share = batch // mesh.size * len(mesh.local_devices)
    step_fn = _step(describe, mesh)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    images, steps = iter(batches), -(-count // batch)
    found: list[np.ndarray] = []
    before: tuple[int, Described] | None = None

    def keep(step: int, features: Described) -> None:
        found.append(np.asarray(features.embedding))
        if store is not None:
            store.put(step, features.terms)

    for step in range(steps):
        # Another process may have images in the last batch where this one has none.
        mine = next(images, None)
        mine = np.zeros((share, *image_shape), np.uint8) if mine is None else mine
        features = step_fn(variables, jax.make_array_from_process_local_data(sharding, mine, (batch, *image_shape)))
        if before:
            keep(*before)  # one batch late: it is copied while the device works on the next
        before = step, features
    if before:
        keep(*before)
    return np.concatenate(found)[:count]


@functools.lru_cache(maxsize=4)
def _step(describe: Describe, mesh: Mesh) -> Any:
    """`describe` over the devices: embeddings on all of them, terms where they were computed."""
    axis = mesh.axis_names[0]

    def step(variables: Any, images: jax.Array) -> Described:
        found = describe(variables, images)
        return Described(jax.lax.all_gather(found.embedding, axis, tiled=True), found.terms)

    split = PartitionSpec(axis)
    specs = Described(PartitionSpec(), split)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=specs, check_vma=False))
