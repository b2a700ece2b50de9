"""Re-scoring: the best candidates of each query, scored again by their conditional embeddings (paper section 3.5).

The candidates are a list of pairs. It is joined with the stored terms in nested blocks: a block of queries on every
device, and one pass over the gallery in chunks, each split over the devices. A device scores the pairs whose gallery
image it holds, in groups of one image (the anchor) and the images that it is compared with, so that a group is one large
product; calls have one compiled shape. Where everything fits on the devices there is one block and one chunk.

Legend: Q queries, G gallery images, K candidates of a query, R groups of a call, C pairs of a group.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.term_store import Plan, Store, gather_all, global_array, unpack

# Constants, terms of one image and of C others to C distances; symmetric, so that either side may be the one.
GroupDistance = Callable[[Any, Any, Any], Any]

_LARGEST_GROUP = {"cpu": 8}  # pairs; 32 on other platforms
# On a CPU a loop takes two groups at a time: a working set that stays in the caches, in memory that the loop uses again.
# A whole call at once is half as fast, and one group at a time a tenth (XLA then fuses conversions into the products).
_CPU_GROUPS = 2
_IN_FLIGHT = 8  # calls that the devices may be behind the host


class Shape(NamedTuple):
    """The one compiled shape of a scoring.

    Attributes:
        by_query: whether anchors are queries; else they are gallery images.
        rows: R, groups of a device in a call.
        width: C.
    """

    by_query: bool
    rows: int
    width: int


def choose_shape(num_pairs: int, top_k: int, gallery: Store, query: Store, plan: Plan, pairs_per_call: int) -> Shape:
    """The shape for a number of pairs, from sizes alone: another state of the network compiles nothing.

    A query has about `top_k / parts` pairs with a part of the gallery, and a gallery image has `pairs / G` with a block of
    queries. The longer list makes the better groups: less filling, and the anchor is read once a group.
    """
    blocks, chunks = -(-query.steps // plan.block), -(-gallery.steps // plan.chunk)
    parts = chunks * gallery.mesh.size
    of_query, of_image = top_k / parts, num_pairs / blocks / gallery.count
    by_query = of_query >= of_image
    platform = gallery.mesh.devices.flat[0].platform
    largest = min(_LARGEST_GROUP.get(platform, 32), pairs_per_call)
    if parts == 1 and by_query:
        width = -(-top_k // -(-top_k // largest))  # every query has top_k pairs: next to nothing is filled
        groups = query.count / blocks * -(-top_k // width)
    else:
        # Lists of uneven length: larger groups read fewer anchors, and half a group of each list is filling.
        # Groups of one are slow on a CPU, slower than twice as many pairs in groups of two.
        width = min(max(round((1.5 * max(of_query, of_image)) ** 0.5), 2), largest)
        groups = num_pairs / (blocks * parts) / width / 4  # several calls, so that the last one fills little
    rows = max(min(pairs_per_call // width, int(np.ceil(groups))), 1)
    return Shape(by_query, rows + (rows % _CPU_GROUPS if platform == "cpu" else 0), width)


class Rescorer:
    """Distances of queries and their candidates; every process makes the same calls.

    Attributes:
        distance: of a group; one function object compiles once.
        constants: its first argument, on every device.
        query: terms of the queries.
        gallery: terms of the gallery, on the same mesh.
        plan: how much of both is on the devices at a time.
        pairs_per_call: pairs of one call on one device, which bounds the memory (a group or two at least).
    """

    def __init__(
        self,
        distance: GroupDistance,
        constants: Any,
        query: Store,
        gallery: Store,
        plan: Plan,
        pairs_per_call: int = 512,
    ):
        """Keeps what it is given."""
        self.distance, self.constants, self.plan = distance, constants, plan
        self.query, self.gallery, self.pairs_per_call = query, gallery, pairs_per_call

    def __call__(self, candidates_QK: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
        """Distances of each query and its candidates, float32, in every process.

        Raises:
            UserError: a distance is not a number.
        """
        mesh, plan = self.gallery.mesh, self.plan
        num_query, top_k = candidates_QK.shape
        shape = choose_shape(candidates_QK.size, top_k, self.gallery, self.query, plan, self.pairs_per_call)
        types = tuple(np.dtype(x.dtype) for x in jax.tree.leaves(self.gallery.like))
        step = _step(self.distance, types, mesh, shape.by_query)
        out_P = np.zeros(candidates_QK.size, np.float32)
        gallery_P = candidates_QK.ravel()
        query_P = np.repeat(np.arange(num_query), top_k)
        chunk_P = gallery_P // self.gallery.batch // plan.chunk
        waiting: deque[tuple[jax.Array, np.ndarray]] = deque()

        def fetch() -> None:
            scores, pair_DRC = waiting.popleft()
            real = pair_DRC >= 0
            out_P[pair_DRC[real]] = np.asarray(scores)[real]

        per_block = plan.block * self.query.batch
        for first in range(0, num_query, per_block):
            queries = gather_all(mesh)(self.query.run(first // self.query.batch, plan.block))
            block_P = np.arange(first * top_k, min(first + per_block, num_query) * top_k)
            order_P = block_P[np.argsort(chunk_P[block_P], kind="stable")]
            chunks, starts = np.unique(chunk_P[order_P], return_index=True)
            parts = np.split(order_P, starts[1:])
            runs = _ahead(lambda c: self.gallery.run(int(c) * plan.chunk, plan.chunk), chunks)
            for chunk, part, terms in zip(chunks, parts, runs):
                inside_P = gallery_P[part] - chunk * plan.chunk * self.gallery.batch
                for call in self._calls(part, query_P[part] - first, inside_P, shape):
                    sides = (queries, terms) if shape.by_query else (terms, queries)
                    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
                    indices = (global_array(x, sharding) for x in (call.anchor_DR, call.other_DRC))
                    waiting.append((step(self.constants, *sides, *indices), call.pair_DRC))
                    if len(waiting) > _IN_FLIGHT:
                        fetch()
                del terms
        while waiting:
            fetch()
        if not np.isfinite(out_P).all():
            pair = int(np.argmin(np.isfinite(out_P)))
            raise UserError(
                f"re-scoring: found a distance of {out_P[pair]} between query {query_P[pair]} and gallery image "
                f"{gallery_P[pair]}, expected a number; check the network's parameters for NaN and inf"
            )
        return out_P.reshape(num_query, top_k)

    def _calls(self, pair_P: np.ndarray, query_P: np.ndarray, inside_P: np.ndarray, shape: Shape) -> Iterator["_Call"]:
        """The calls that score the given pairs of a block and a chunk, by their places in them."""
        batch, devices = self.gallery.batch, self.gallery.mesh.size
        share = batch // devices
        column_P = inside_P % batch
        owner_P, local_P = column_P // share, inside_P // batch * share + column_P % share
        anchor_P, other_P = (query_P, local_P) if shape.by_query else (local_P, query_P)
        groups = []
        for device in range(devices):
            mine = np.flatnonzero(owner_P == device)
            groups.append(_group(pair_P[mine], anchor_P[mine], other_P[mine], shape.width))
        longest = max(len(group.anchor_DR) for group in groups)
        rows = -(-longest // shape.rows) * shape.rows

        def fill(x: np.ndarray, value: int) -> np.ndarray:
            return np.concatenate([x, np.full((rows - len(x), *x.shape[1:]), value, x.dtype)])

        whole = [
            np.stack([fill(field, value) for field in fields])
            for fields, value in zip(zip(*groups, strict=True), (-1, 0, 0), strict=True)
        ]
        for start in range(0, rows, shape.rows):
            yield _Call(*(x[:, start : start + shape.rows] for x in whole))


class _Call(NamedTuple):
    """Groups of pairs; leading axis the device. Filling has pair -1 and some image.

    Attributes:
        pair_DRC: place of each pair in the list of all pairs.
        anchor_DR: which image a group shares.
        other_DRC: the images that it is compared with.
    """

    pair_DRC: np.ndarray
    anchor_DR: np.ndarray
    other_DRC: np.ndarray


def _group(pair_P: np.ndarray, anchor_P: np.ndarray, other_P: np.ndarray, width: int) -> _Call:
    """Groups of `width` pairs with one anchor each, of one device: without the leading axis."""
    order_P = np.lexsort((other_P, anchor_P))  # others ascending: memory is read in order
    pair_P, anchor_P, other_P = pair_P[order_P], anchor_P[order_P], other_P[order_P]
    anchors, start, count = np.unique(anchor_P, return_index=True, return_counts=True)
    place_P = np.arange(len(anchor_P)) - np.repeat(start, count)
    groups = -(-count // width)
    row_P = np.repeat(np.cumsum(groups) - groups, count) + place_P // width
    pair_RC = np.full((groups.sum(), width), -1, np.int64)
    other_RC = np.zeros(pair_RC.shape, np.int32)
    pair_RC[row_P, place_P % width] = pair_P
    other_RC[row_P, place_P % width] = other_P
    return _Call(pair_RC, np.repeat(anchors, groups).astype(np.int32), other_RC)


def _ahead(load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """load(item) of each item, the next one loaded by a thread while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@functools.lru_cache(maxsize=4)
def _step(distance: GroupDistance, types: tuple[np.dtype, ...], mesh: Mesh, by_query: bool) -> Any:
    """Scores of a call: each device takes its groups from the terms that it holds; all devices get all scores."""
    axis = mesh.axis_names[0]

    def step(constants: Any, anchors: Any, others: Any, anchor_1R: jax.Array, other_1RC: jax.Array) -> jax.Array:
        anchors, others = (jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree) for tree in (anchors, others))

        like = jax.tree.unflatten(jax.tree.structure(anchors), [jax.ShapeDtypeStruct((), t) for t in types])

        def take(tree: Any, index: jax.Array) -> Any:
            return unpack(jax.tree.map(lambda x: x[index], tree), like)

        def group(indices: tuple[jax.Array, jax.Array]) -> jax.Array:
            anchor, other_C = indices
            one, those = take(anchors, anchor), take(others, other_C)
            return distance(constants, one, those)

        rows = other_1RC.shape[1]
        at_once = _CPU_GROUPS if mesh.devices.flat[0].platform == "cpu" else rows
        indices = (anchor_1R[0], other_1RC[0])
        scores_RC = jax.vmap(group)(indices) if at_once >= rows else jax.lax.map(group, indices, batch_size=at_once)
        return jax.lax.all_gather(scores_RC, axis)

    whole, split, columns = PartitionSpec(), PartitionSpec(axis), PartitionSpec(None, axis)
    sides = (whole, columns) if by_query else (columns, whole)
    specs = (whole, *sides, split, split)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False))
