"""Re-scoring of each query's best candidates by the distance between their conditional embeddings (paper section 3.5).

Query-candidate pairs are scored in two nested loops. The outer loop copies a block of queries to every device. The
inner loop shards a chunk of the gallery over the devices, and each device scores the pairs whose gallery image it
holds. Pairs are grouped by a common image (the anchor), which turns each group into one large matrix product. All calls
have the same shape, so they are compiled only once. If everything fits on the devices, there is one block and one
chunk.

Legend: Q queries, G gallery images, K candidates per query, R groups per call, C pairs per group.
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

from cacenet_jax.distributed.progress import Progress
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.term_store import Plan, Store, gather_all, global_array, unpack

# (constants, terms of one image, terms of C others) -> C distances. Symmetric, so either side can be the single image.
GroupDistance = Callable[[Any, Any, Any], Any]

_LARGEST_GROUP = {"cpu": 8}  # pairs; 32 on other platforms
# On CPUs, two groups are processed at a time, because their working set fits in the caches. Processing a whole call at
# once is half as fast, and one group at a time a tenth as fast (XLA then fuses conversions into the products).
_CPU_GROUPS = 2
_IN_FLIGHT = 8  # calls dispatched before their results are fetched


class CallShape(NamedTuple):
    """Shape of the re-scoring calls, compiled once.

    Attributes:
        by_query: True if anchors are queries, False if they are gallery images.
        rows: R, number of groups per device and call.
        width: C, number of pairs per group.
    """

    by_query: bool
    rows: int
    width: int


def choose_shape(
    num_pairs: int, top_k: int, gallery: Store, query: Store, plan: Plan, pairs_per_call: int
) -> CallShape:
    """Choose the shape of the calls.

    The choice depends only on sizes, so a new checkpoint causes no recompilation.

    Each device holds one of `parts` equal parts of the gallery at a time. A query has about top_k / parts pairs with
    the images of one part, and a gallery image has about num_pairs / blocks / G pairs with the queries of one block.
    Anchors are taken from the side with more pairs per image, because its groups need less padding and each anchor is
    read only once per group.

    Args:
        num_pairs: number of pairs, Q * K.
        top_k: K.
        gallery: terms of the gallery.
        query: terms of the queries.
        plan: sizes of query blocks and gallery chunks.
        pairs_per_call: upper bound on R * C.
    """
    blocks, chunks = -(-query.steps // plan.block), -(-gallery.steps // plan.chunk)
    parts = chunks * gallery.mesh.size
    pairs_per_query, pairs_per_image = top_k / parts, num_pairs / blocks / gallery.count
    by_query = pairs_per_query >= pairs_per_image
    platform = gallery.mesh.devices.flat[0].platform
    largest = min(_LARGEST_GROUP.get(platform, 32), pairs_per_call)
    if parts == 1 and by_query:
        width = -(-top_k // -(-top_k // largest))  # every query has top_k pairs, so padding is minimal
        groups = query.count / blocks * -(-top_k // width)
    else:
        # The number of pairs varies between anchors. Larger groups read anchors less often, but waste half a group per
        # anchor on padding, on average. On CPUs, a group of one pair takes longer than a group of two.
        width = min(max(round((1.5 * max(pairs_per_query, pairs_per_image)) ** 0.5), 2), largest)
        groups = num_pairs / (blocks * parts) / width / 4  # several calls, to limit the padding of the last one
    rows = max(min(pairs_per_call // width, int(np.ceil(groups))), 1)
    return CallShape(by_query, rows + (rows % _CPU_GROUPS if platform == "cpu" else 0), width)


class Rescorer:
    """Callable that computes pair distances between queries and their candidates.

    Every process must make the same calls.

    Attributes:
        distance: distance function of a group; compiled once per function object.
        constants: first argument of `distance`, replicated over the devices.
        query: terms of the queries.
        gallery: terms of the gallery, on the same mesh.
        plan: sizes of query blocks and gallery chunks.
        pairs_per_call: maximum number of pairs per call and device, which bounds the memory. A call has at least one
            group, or two on CPUs.
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
        """Store the fields."""
        self.distance, self.constants, self.plan = distance, constants, plan
        self.query, self.gallery, self.pairs_per_call = query, gallery, pairs_per_call

    def __call__(self, candidates_QK: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
        """Compute the distances from each query to its candidates.

        Args:
            candidates_QK: indices of gallery images.

        Returns:
            float32 distances, shape (Q, K), in every process.

        Raises:
            UserError: a distance is not finite.
        """
        with Progress("re-scoring", candidates_QK.size, "pairs") as bar:
            score_QK = self._score(candidates_QK, bar)
        if not np.isfinite(score_QK).all():
            q, k = np.argwhere(~np.isfinite(score_QK))[0]
            raise UserError(
                f"re-scoring: found distance {score_QK[q, k]} between query {q} and gallery image {candidates_QK[q, k]}, "
                "expected a finite number; check the network's parameters for NaN and inf"
            )
        return score_QK

    def _score(self, candidates_QK: np.ndarray, bar: Progress) -> np.ndarray:
        """Compute the distances of all pairs and report the pairs that are done."""
        mesh, plan = self.gallery.mesh, self.plan
        num_query, top_k = candidates_QK.shape
        shape = choose_shape(candidates_QK.size, top_k, self.gallery, self.query, plan, self.pairs_per_call)
        types = tuple(np.dtype(x.dtype) for x in jax.tree.leaves(self.gallery.like))
        step = _compile_step(self.distance, types, mesh, shape.by_query)
        out_P = np.zeros(candidates_QK.size, np.float32)
        gallery_P = candidates_QK.ravel()
        query_P = np.repeat(np.arange(num_query), top_k)
        chunk_P = gallery_P // self.gallery.batch // plan.chunk
        waiting: deque[tuple[jax.Array, np.ndarray]] = deque()

        def fetch() -> None:
            scores, pair_DRC = waiting.popleft()
            is_pair = pair_DRC >= 0
            out_P[pair_DRC[is_pair]] = np.asarray(scores)[is_pair]
            bar.update(int(is_pair.sum()))

        per_block = plan.block * self.query.batch
        for first in range(0, num_query, per_block):
            queries = gather_all(mesh)(self.query.read(first // self.query.batch, plan.block))
            block_P = np.arange(first * top_k, min(first + per_block, num_query) * top_k)
            order_P = block_P[np.argsort(chunk_P[block_P], kind="stable")]
            chunks, starts = np.unique(chunk_P[order_P], return_index=True)
            parts = np.split(order_P, starts[1:])
            chunk_terms = _prefetch(lambda c: self.gallery.read(int(c) * plan.chunk, plan.chunk), chunks)
            for chunk, part, terms in zip(chunks, parts, chunk_terms):
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
        return out_P.reshape(num_query, top_k)

    def _calls(
        self, pair_P: np.ndarray, query_P: np.ndarray, inside_P: np.ndarray, shape: CallShape
    ) -> Iterator["_Call"]:
        """Yield the calls that score the pairs between a query block and a gallery chunk.

        Args:
            pair_P: indices of the pairs in the list of all pairs.
            query_P: index of each pair's query in the block.
            inside_P: index of each pair's gallery image in the chunk.
            shape: shape of the calls.
        """
        batch, devices = self.gallery.batch, self.gallery.mesh.size
        share = batch // devices
        column_P = inside_P % batch
        owner_P, local_P = column_P // share, inside_P // batch * share + column_P % share
        anchor_P, other_P = (query_P, local_P) if shape.by_query else (local_P, query_P)
        groups = []
        for device in range(devices):
            owned = np.flatnonzero(owner_P == device)
            groups.append(_group_pairs(pair_P[owned], anchor_P[owned], other_P[owned], shape.width))
        longest = max(len(group.anchor_DR) for group in groups)
        rows = -(-longest // shape.rows) * shape.rows

        def pad(x: np.ndarray, value: int) -> np.ndarray:
            return np.concatenate([x, np.full((rows - len(x), *x.shape[1:]), value, x.dtype)])

        padded = [
            np.stack([pad(field, value) for field in fields])
            for fields, value in zip(zip(*groups, strict=True), (-1, 0, 0), strict=True)
        ]
        for start in range(0, rows, shape.rows):
            yield _Call(*(x[:, start : start + shape.rows] for x in padded))


class _Call(NamedTuple):
    """Groups of pairs scored in one call; the leading axis is over D devices.

    Attributes:
        pair_DRC: index of each pair in the list of all pairs, -1 for padding.
        anchor_DR: index of each group's anchor.
        other_DRC: indices of the images compared with the anchor; arbitrary for padding.
    """

    pair_DRC: np.ndarray
    anchor_DR: np.ndarray
    other_DRC: np.ndarray


def _group_pairs(pair_P: np.ndarray, anchor_P: np.ndarray, other_P: np.ndarray, width: int) -> _Call:
    """Form padded groups of `width` pairs with a common anchor for one device. The result has no device axis."""
    order_P = np.lexsort((other_P, anchor_P))  # others ascending, so memory is read in order
    pair_P, anchor_P, other_P = pair_P[order_P], anchor_P[order_P], other_P[order_P]
    anchors, start, count = np.unique(anchor_P, return_index=True, return_counts=True)
    position_P = np.arange(len(anchor_P)) - np.repeat(start, count)
    groups = -(-count // width)
    row_P = np.repeat(np.cumsum(groups) - groups, count) + position_P // width
    pair_RC = np.full((groups.sum(), width), -1, np.int64)
    other_RC = np.zeros(pair_RC.shape, np.int32)
    pair_RC[row_P, position_P % width] = pair_P
    other_RC[row_P, position_P % width] = other_P
    return _Call(pair_RC, np.repeat(anchors, groups).astype(np.int32), other_RC)


def _prefetch(load: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield load(item) for each item, loading the next item in a thread while the caller processes the current one."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@functools.lru_cache(maxsize=4)
def _compile_step(distance: GroupDistance, types: tuple[np.dtype, ...], mesh: Mesh, by_query: bool) -> Any:
    """Compile a call in which each device scores its groups and the scores are gathered on all devices.

    Args:
        distance: distance function of a group.
        types: original dtypes of the terms, which are stored as bits.
        mesh: devices of all processes.
        by_query: as in `CallShape`.
    """
    axis = mesh.axis_names[0]

    def step(constants: Any, anchors: Any, others: Any, anchor_1R: jax.Array, other_1RC: jax.Array) -> jax.Array:
        anchors, others = (jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree) for tree in (anchors, others))

        like = jax.tree.unflatten(jax.tree.structure(anchors), [jax.ShapeDtypeStruct((), t) for t in types])

        def take(tree: Any, index: jax.Array) -> Any:
            return unpack(jax.tree.map(lambda x: x[index], tree), like)

        def group(indices: tuple[jax.Array, jax.Array]) -> jax.Array:
            anchor, other_C = indices
            return distance(constants, take(anchors, anchor), take(others, other_C))

        rows = other_1RC.shape[1]
        batch_size = _CPU_GROUPS if mesh.devices.flat[0].platform == "cpu" else rows
        indices = (anchor_1R[0], other_1RC[0])
        scores_RC = (
            jax.vmap(group)(indices) if batch_size >= rows else jax.lax.map(group, indices, batch_size=batch_size)
        )
        return jax.lax.all_gather(scores_RC, axis)

    replicated, rows_split, columns_split = PartitionSpec(), PartitionSpec(axis), PartitionSpec(None, axis)
    sides = (replicated, columns_split) if by_query else (columns_split, replicated)
    specs = (replicated, *sides, rows_split, rows_split)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=replicated, check_vma=False))
