"""Pair distances for a few queries, processed one query at a time.

One compiled program serves any number of queries and gallery images. Evaluation uses rescore.py and term_store.py
instead, which share work between thousands of queries but compile separate programs for each data set.

Legend: n images, B images in a batch, Q queries, K candidates per query, C images in one comparison.
"""

import os
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.extract import round_up
from cacenet_jax.retrieval.rescore import GroupDistance
from cacenet_jax.retrieval.term_store import allocate, tree_bytes

_LARGEST_GROUP = {"cpu": 8}  # images per device; 32 on other platforms, as in rescore.py
_IN_FLIGHT = 8  # comparisons dispatched before their results are fetched


class HostTerms:
    """Host storage for the pair-stage terms of n images, written in batches and indexed by image.

    Attributes:
        arrays: tree of NumPy arrays with leading axis n.
        batch: B, number of images per batch.
    """

    def __init__(self, like: Any, count: int, batch: int, memory_bytes: int, folder: str | os.PathLike, remedy: str):
        """Allocate the arrays in memory, or in temporary files if they exceed `memory_bytes`.

        Args:
            like: shapes and dtypes of one image's terms.
            count: n.
            batch: B.
            memory_bytes: maximum total size of arrays in memory.
            folder: folder of the temporary files.
            remedy: advice that ends the error message.

        Raises:
            UserError: the folder is not writable or has too little space.
        """
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), like)
        self.arrays = allocate(whole, "memory" if tree_bytes(whole) <= memory_bytes else "file", folder, remedy)
        self.batch = batch

    def put(self, step: int, terms: Any) -> None:
        """Store the terms of batch `step`, dropping the padding after the last image."""
        for target, source in zip(jax.tree.leaves(self.arrays), jax.tree.leaves(terms), strict=True):
            rows = target[step * self.batch : (step + 1) * self.batch]
            rows[...] = np.asarray(source)[: len(rows)]

    def take(self, rows: Int[np.ndarray, "m"]) -> "HostTerms":
        """Return a copy of the terms of some images, in memory."""
        copy = object.__new__(HostTerms)
        copy.arrays, copy.batch = self[rows], self.batch
        return copy

    def __getitem__(self, index: Any) -> Any:
        """Return the terms of the image or images at `index`; several images add a leading axis."""
        return jax.tree.map(lambda x: np.asarray(x[index]), self.arrays)


class Comparer:
    """Callable that computes pair distances between queries and their candidates.

    Candidates are copied to the devices in groups, a few groups at a time.

    Attributes:
        group: C, number of candidates per comparison.
    """

    def __init__(self, distance: GroupDistance, constants: Any, mesh: Mesh, top_k: int):
        """Wrap `distance` for compilation, which happens on the first call.

        Args:
            distance: function from `constants`, the terms of one image and those of others to distances.
            constants: first argument of `distance`, replicated over the devices.
            mesh: devices of this process, over which each group is sharded.
            top_k: maximum K.
        """
        whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
        self._distance = jax.jit(
            jax.shard_map(distance, mesh=mesh, in_specs=(whole, whole, split), out_specs=split, check_vma=False)
        )
        self._constants = constants
        largest = mesh.size * _LARGEST_GROUP.get(mesh.devices.flat[0].platform, 32)
        self.group = round_up(-(-top_k // -(-top_k // largest)), mesh)

    def __call__(
        self, query: HostTerms, gallery: HostTerms, candidates_QK: Int[np.ndarray, "Q K"]
    ) -> Float[np.ndarray, "Q K"]:
        """Compute the distances between each query and its candidates.

        Args:
            query: terms of the queries.
            gallery: terms of gallery images.
            candidates_QK: indices into `gallery`.

        Returns:
            float32 distances, shape (Q, K).

        Raises:
            UserError: a distance is not finite.
        """
        out_QK = np.empty(candidates_QK.shape, np.float32)
        waiting: deque[tuple[int, int, jax.Array]] = deque()

        def fetch() -> None:
            q, start, distance_C = waiting.popleft()
            row = out_QK[q, start : start + self.group]
            row[:] = np.asarray(distance_C)[: len(row)]

        for q, row_K in enumerate(track(candidates_QK, "re-scoring", len(candidates_QK), "queries")):
            one = query[q]
            for start in range(0, len(row_K), self.group):
                group_C = np.resize(row_K[start : start + self.group], self.group)  # padded by repetition
                waiting.append((q, start, self._distance(self._constants, one, gallery[group_C])))
                if len(waiting) > _IN_FLIGHT:
                    fetch()
        while waiting:
            fetch()
        if not np.isfinite(out_QK).all():
            raise UserError(
                "re-scoring: found a distance that is not finite, expected numbers; check the network's parameters for NaN "
                "and inf"
            )
        return out_QK
