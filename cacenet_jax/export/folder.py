"""The folder of an export: its files, their manifest, and how they are put in place.

The manifest is written last and names the SHA-256 of each file: a folder without one was cut off, and a file that does not
fit it is of another export.
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
DISTANCE = "distance"  # name of what a pair scorer gives
# Everything that an export may leave in its folder; other files there are the user's.
OURS = (EXTRACTOR + JAX, PAIR_SCORER + JAX, EXTRACTOR + ONNX, PAIR_SCORER + ONNX, WEIGHTS, CHECK, MANIFEST)
_FORMAT = 1


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"format": _FORMAT} | manifest, indent=2) + "\n")
    os.replace(scratch, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        UserError: there is none, it is of another format, or a file is missing or is not the one that it names.
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
    """Moves checked files into the folder of an export and writes its manifest.

    Args:
        scratch: where the files are, on the same file system.
        folder: where they go.
        names: the files.
        manifest: what to write last.
        replaced: files of an earlier export that go, where they are not replaced.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in replaced:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(scratch / name, folder / name)
    write_manifest(folder / MANIFEST, manifest)
