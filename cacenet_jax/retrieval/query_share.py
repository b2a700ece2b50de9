"""Division of the queries among processes, and gathering of what each process computed for its share."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def process_queries(num_query: int) -> slice:
    """Return the slice of queries that this process ranks."""
    size = -(-num_query // jax.process_count())
    start = min(jax.process_index() * size, num_query)
    return slice(start, min(start + size, num_query))


def gather_queries(local: np.ndarray, num_query: int) -> np.ndarray:
    """Concatenate the query rows of all processes, bit for bit."""
    if jax.process_count() == 1:
        return local
    size = -(-num_query // jax.process_count())
    padded = np.zeros((size, *local.shape[1:]), local.dtype)
    padded[: len(local)] = local
    # Sent as bytes, because JAX would round float64 to float32.
    data = np.frombuffer(padded.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(data))
    return np.frombuffer(gathered.tobytes(), local.dtype).reshape(-1, *local.shape[1:])[:num_query]
