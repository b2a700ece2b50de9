"""The export folder: file names, manifest, and replacement of an earlier export.

The manifest is written last and records the SHA-256 of each file. A folder without a manifest is an incomplete export,
and a file with a different hash belongs to another export.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cacenet_jax.data import json_files
from cacenet_jax.errors import UserError

MANIFEST = "manifest.json"
EXTRACTOR, PAIR_SCORER = "extractor", "pair_scorer"
JAX, ONNX = ".jaxexport", ".onnx"
WEIGHTS, CHECK = "weights.safetensors", "check.npz"
DISTANCE = "distance"  # name of the pair scorer's output
# All files that an export may write; any other files in the folder belong to the user.
OURS = (EXTRACTOR + JAX, PAIR_SCORER + JAX, EXTRACTOR + ONNX, PAIR_SCORER + ONNX, WEIGHTS, CHECK, MANIFEST)
_SCRATCH = ".scratch."
_FORMAT = 1
_MAX_MANIFEST = 16 << 20  # bytes; a manifest has some kilobytes


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest atomically."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"format": _FORMAT} | manifest, indent=2) + "\n")
    os.replace(scratch, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an export and verify its files.

    Raises:
        UserError: the manifest is missing or has another format, names a file that no export writes, or a file is
            missing or has the wrong size or hash.
    """
    again = "run --mode=export again"
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{path.stat().st_size >> 20} MiB")
        manifest = json_files.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no manifest ({error}), expected that of a complete export; {again}") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != _FORMAT:
        raise UserError(f"{path}: found format {repr(version)[:80]}, expected {_FORMAT}; {again}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{path}: found no list of files, expected the files of the export; {again}")
    for name, recorded in files.items():
        if name not in OURS:  # also names with folders, which would leave the export
            raise UserError(f"{path}: found the file {name[:120]!a}, expected only {', '.join(OURS)}; {again}")
        file = folder / name
        if not _is_recorded(file, recorded):
            state = "another file" if file.exists() else "no file"
            raise UserError(f"{file}: found {state}, expected the one that {MANIFEST} names; {again}")
    return manifest


def _is_recorded(file: Path, recorded: Any) -> bool:
    """Return True if a file has the recorded size and, read only then, the recorded hash."""
    if not isinstance(recorded, dict) or not file.is_file() or recorded.get("bytes") != file.stat().st_size:
        return False
    return describe_file(file)["sha256"] == recorded.get("sha256")


def read_check_values(folder: Path) -> dict[str, np.ndarray]:
    """Read the check values of an export.

    Raises:
        UserError: the file is broken, holds objects, or claims arrays of another size than it has.
    """
    path = folder / CHECK
    values = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("arrays that are larger than their file")
            for info in archive.infolist():
                data = archive.read(info)
                values[info.filename.removesuffix(".npy")] = _array(data)
    except Exception as error:  # zipfile and numpy.lib.format raise errors of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: found no check values ({reason}), expected those of a complete export; run --mode=export again"
        ) from error
    return values


def _array(data: bytes) -> np.ndarray:
    """Return the array in the bytes of a .npy file, whose size must be the one in its header."""
    file = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = read_header[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{dtype} of shape {shape} in {len(data) - file.tell()} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty scratch folder inside an export folder, and remove those that killed exports left there.

    The export folder is locked while the block runs; the system releases the lock when the process ends.

    Args:
        folder: export folder, created if missing.

    Raises:
        UserError: nothing can be written to the folder, or another export to it is in progress.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(exist_ok=True)
            if _lock(folder, held):  # all scratch folders are those of processes that have ended
                for leftover in folder.glob(f"{_SCRATCH}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            scratch = held.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH))
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: found another export in progress, expected none; wait for its end or stop it"
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder}: found no folder that can be written ({error.strerror}), expected one; move away what is "
                "there, or make it writable"
            ) from error
        yield Path(scratch)


def _lock(folder: Path, held: contextlib.ExitStack) -> bool:
    """Lock a folder until `held` is closed; returns False on a file system without locks on folders.

    Raises:
        BlockingIOError: another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # the folder itself: no lock file among the artefacts
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def place(scratch: Path, folder: Path, names: Sequence[str], manifest: dict[str, Any], replaced: Sequence[str]) -> None:
    """Move checked files into an export folder and write its manifest.

    Args:
        scratch: folder that contains the files, on the same file system.
        folder: export folder.
        names: names of the files.
        manifest: manifest, written last.
        replaced: files of an earlier export to delete unless they are overwritten.
    """
    write_manifest(scratch / MANIFEST, manifest)  # takes the space that it needs before anything is replaced
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in replaced:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    for name in (*names, MANIFEST):
        os.replace(scratch / name, folder / name)
