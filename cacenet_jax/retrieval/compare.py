"""Pair distances of one query after another: one compiled program for any number of queries and gallery images.

An evaluation with thousands of queries shares more work between them (rescore.py, term_store.py), for programs of their own
for each data set.

Legend: n images, B images of a batch, Q queries, K candidates of a query, C images of one comparison.
"""

import os
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.extract import round_up
from cacenet_jax.retrieval.rescore import GroupDistance
from cacenet_jax.retrieval.term_store import allocate, tree_bytes

_LARGEST_GROUP = {"cpu": 8}  # images on a device, 32 on other platforms, as in rescore.py
_IN_FLIGHT = 8  # comparisons that the devices may be behind the host


class HostTerms:
    """Terms of n images on the host, written batch by batch and read image by image.

    Attributes:
        arrays: tree of NumPy arrays with leading axis n.
        batch: B, images of a batch.
    """

    def __init__(self, like: Any, count: int, batch: int, memory_bytes: int, folder: str | os.PathLike, remedy: str):
        """Allocate in memory or, past its limit, in temporary files.

        Args:
            like: shapes and types of one image's terms.
            count: n.
            batch: B.
            memory_bytes: limit of the arrays in memory.
            folder: where temporary files lie.
            remedy: end of the error's line.

        Raises:
            UserError: the folder cannot be written or has too little room.
        """
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), like)
        self.arrays = allocate(whole, "memory" if tree_bytes(whole) <= memory_bytes else "file", folder, remedy)
        self.batch = batch

    def put(self, step: int, terms: Any) -> None:
        """Store the terms of a batch, without the filling past the last image."""
        for target, source in zip(jax.tree.leaves(self.arrays), jax.tree.leaves(terms), strict=True):
            rows = target[step * self.batch : (step + 1) * self.batch]
            rows[...] = np.asarray(source)[: len(rows)]

    def __getitem__(self, index: Any) -> Any:
        """Terms of one image, or of several with a leading axis."""
        return jax.tree.map(lambda x: np.asarray(x[index]), self.arrays)


class Comparer:
    """Pair distances of queries and their candidates, in memory of a few groups on the devices.

    Attributes:
        group: C, the same for every comparison.
    """

    def __init__(self, distance: GroupDistance, constants: Any, mesh: Mesh, top_k: int):
        """Prepare the program, which is compiled at the first comparison.

        Args:
            distance: `constants`, terms of one image and of others to distances.
            constants: its first argument, on every device.
            mesh: devices of this process, which share a group.
            top_k: largest K.
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
        """Compute the distances of each query and its candidates.

        Args:
            query: terms of the queries.
            gallery: terms of gallery images.
            candidates_QK: places in `gallery`.

        Raises:
            UserError: a distance is not finite.
        """
        out_QK = np.empty(candidates_QK.shape, np.float32)
        waiting: deque[tuple[int, int, jax.Array]] = deque()

        def fetch() -> None:
            q, start, distance_C = waiting.popleft()
            row = out_QK[q, start : start + self.group]
            row[:] = np.asarray(distance_C)[: len(row)]

        for q, row_K in enumerate(candidates_QK):
            one = query[q]
            for start in range(0, len(row_K), self.group):
                group_C = np.resize(row_K[start : start + self.group], self.group)  # filled with repetitions
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
