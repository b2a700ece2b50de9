"""The export folder: file names, manifest, and replacement of an earlier export.

The manifest is written last and records the SHA-256 of each file. A folder without a manifest is an incomplete export,
and a file with a different hash belongs to another export.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacenet_jax.errors import UserError

MANIFEST = "manifest.json"
EXTRACTOR, PAIR_SCORER = "extractor", "pair_scorer"
JAX, ONNX = ".jaxexport", ".onnx"
WEIGHTS, CHECK = "weights.safetensors", "check.npz"
DISTANCE = "distance"  # name of the pair scorer's output
# All files that an export may write; any other files in the folder belong to the user.
OURS = (EXTRACTOR + JAX, PAIR_SCORER + JAX, EXTRACTOR + ONNX, PAIR_SCORER + ONNX, WEIGHTS, CHECK, MANIFEST)
_FORMAT = 1


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
        UserError: the manifest is missing or has another format, or a file is missing or has the wrong hash.
    """
    again = "run --mode=export again"
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no manifest ({error}), expected that of a complete export; {again}") from error
    if manifest.get("format") != _FORMAT:
        raise UserError(f"{path}: found format {manifest.get('format')!r}, expected {_FORMAT}; {again}")
    for name, recorded in manifest["files"].items():
        file = folder / name
        if not file.is_file() or describe_file(file)["sha256"] != recorded["sha256"]:
            state = "another file" if file.exists() else "no file"
            raise UserError(f"{file}: found {state}, expected the one that {MANIFEST} names; {again}")
    return manifest


def place(scratch: Path, folder: Path, names: Sequence[str], manifest: dict[str, Any], replaced: Sequence[str]) -> None:
    """Move checked files into an export folder and write its manifest.

    Args:
        scratch: folder that contains the files, on the same file system.
        folder: export folder.
        names: names of the files.
        manifest: manifest, written last.
        replaced: files of an earlier export to delete unless they are overwritten.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in replaced:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(scratch / name, folder / name)
    write_manifest(folder / MANIFEST, manifest)
