"""Verification of a checkpoint: its metadata hold a record per array, with which its files are compared.

The record is part of orbax's metadata file, which is written last.
"""

import contextlib
import gc
import logging as standard_logging
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from cacenet_jax.data import json_files
from cacenet_jax.errors import UserError
from cacenet_jax.train_step import TrainState

METRIC = "mAP"
ARRAYS = "arrays"
_MAX_LENGTH = 1 << 31  # of an axis
_METADATA = "_CHECKPOINT_METADATA"  # written by orbax when a checkpoint is complete; JSON


class DamagedError(UserError):
    """Error for a checkpoint whose files are incomplete or changed."""


class ArrayRecord(NamedTuple):
    """Record of one array: shape, dtype and CRC-32 of its bytes."""

    shape: list[int]
    dtype: str
    checksum: int


def damage(folder: Path, reason: str) -> DamagedError:
    """Return the error for a damaged checkpoint."""
    return DamagedError(f"{folder}: the checkpoint is damaged ({reason})")


def flatten(state: Any) -> dict[str, Any]:
    """Return the leaves of a state by their names, joined by '/'."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {"/".join(_part(key) for key in path): x for path, x in leaves}


def _part(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def describe(x: jax.Array) -> ArrayRecord:
    """Return the record of a replicated array."""
    local = np.asarray(x.addressable_data(0))
    return ArrayRecord(list(local.shape), str(local.dtype), zlib.crc32(local.tobytes()))


def record(folder: Path) -> dict[str, ArrayRecord]:
    """Return the record of each array of a checkpoint by name.

    Raises:
        DamagedError: the metadata are missing or cannot be read, or there are no arrays.
    """
    try:
        metadata = json_files.parse((folder / _METADATA).read_bytes())
        arrays = {name: _array_record(*values) for name, values in metadata["custom_metadata"][ARRAYS].items()}
    except FileNotFoundError as error:
        raise damage(folder, f"{_METADATA} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damage(folder, f"{_METADATA} cannot be read, or lists no checksums") from error
    if not (folder / "state").is_dir():
        raise damage(folder, "its folder state is missing")
    return arrays


def _array_record(shape: list[int], dtype: str, checksum: int) -> ArrayRecord:
    """Return a record read from a file; raise ValueError if its values have other types."""
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n < _MAX_LENGTH for n in shape):
        raise ValueError("no shape")
    return ArrayRecord(shape, dtype, checksum)


def validation_map(folder: Path) -> float | None:
    """Return the validation mAP of a checkpoint, or None if it was not validated.

    Raises:
        DamagedError: the metrics cannot be read.
    """
    try:
        score = json_files.number(json_files.parse((folder / "metrics" / "metrics").read_bytes())[METRIC])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise damage(folder, "its metrics cannot be read") from error
    if score is None:
        raise damage(folder, "its metrics cannot be read")
    return score


def misfits(arrays: dict[str, ArrayRecord], like: TrainState) -> str:
    """Return the first differences between a checkpoint's arrays and a state; empty if there are none."""
    ours = {name: (list(x.shape), str(x.dtype)) for name, x in flatten(like).items()}
    theirs = {name: (list(array.shape), array.dtype) for name, array in arrays.items()}
    lines = [
        f"{name}: {_shown(theirs.get(name))} there, {_shown(ours.get(name))} here"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    return "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")


def _shown(array: tuple[list[int], str] | None) -> str:
    return "none" if array is None else f"{array[1]}{array[0]}"


def read(folder: Path, arrays: dict[str, ArrayRecord], abstract: Any) -> Any:
    """Read and verify arrays.

    Raises:
        DamagedError: an array cannot be read, or differs from its checksum.
    """
    try:
        with quiet():
            state = ocp.load_checkpointables(folder, {"state": abstract})["state"]
    except Exception as error:
        raise damage(folder, "its arrays cannot be read") from error
    changed = [name for name, x in flatten(state).items() if name not in arrays or describe(x) != arrays[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise damage(folder, f"array {changed[0]}{more}: the values differ from the checksum that was saved")
    return state


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what orbax logs about a damaged checkpoint, and its coroutines that a failed read leaves behind."""
    level, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    except Exception:
        standard_logging.getLogger("asyncio").addFilter(_is_not_of_orbax)  # added once, however often it is called
        gc.collect()
        raise
    finally:
        logging.set_verbosity(level)
        sys.unraisablehook = hook


def _is_not_of_orbax(record: standard_logging.LogRecord) -> bool:
    """Return False for what asyncio logs when it collects a failed task of orbax, at any time after the failure."""
    message = record.getMessage()
    return not (message.startswith("Task exception was never retrieved") and "orbax" in message)
