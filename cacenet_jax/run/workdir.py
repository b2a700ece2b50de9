"""The folder of a run: which config and which data it belongs to, as config.json and data.json record them."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from cacenet_jax.distributed.processes import barrier, exchange, is_writer
from cacenet_jax.errors import UserError
from cacenet_jax.run.records import differences

SHARED_S = 60.0  # a network file system may show a new file that late

# Fields of config.model that change no parameter's meaning: evaluation may choose them anew.
_NOT_OF_THE_NETWORK = ("model.pair_memory_mib", "model.dtype", "model.pair.clue_weight")


def check_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Checks, and changes nothing, that a run of this config may begin or go on in a workdir.

    Raises:
        UserError: the workdir cannot be one, or holds a run of another config; names the fields that differ.
    """
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        obstacle = "a folder that cannot be written" if existing.is_dir() else "a file"
        raise UserError(
            f"--workdir={workdir}: found {obstacle}, {existing}, expected a folder; choose another --workdir"
        )
    recorded = recorded_config(workdir)
    if recorded is not None:
        _need_same(workdir, differences(recorded, config))
    elif (workdir / "checkpoints").exists():
        raise UserError(f"{workdir}: found checkpoints without config.json, expected both; choose a new --workdir")


def check_network(workdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError where the run in a workdir trained another network than this config describes."""
    changed = differences(recorded_config(workdir) or {}, config)
    of_the_network = [d for d in changed if d.startswith("model.") and d.split(":")[0] not in _NOT_OF_THE_NETWORK]
    _need_same(workdir, of_the_network)


def claim_workdir(workdir: Path, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Records the config in workdir/config.json and what is trained on in workdir/data.json, after `check_workdir`.

    Process 0 writes; the others wait and check that they see it.

    Raises:
        UserError: the run in the workdir was started on other data; a checkpoint's classes would mean other people. Or
            the folder is not the one that process 0 writes to.
    """
    _need_shared(workdir)
    if not is_writer():
        barrier("workdir")
        return
    check_workdir(workdir, config)
    path = workdir / "data.json"
    recorded = recorded_data(workdir)
    if recorded is not None and recorded != data:
        raise UserError(
            f"{path}: found a run on {recorded}, expected the data of now, {data}; restore the data set or choose a new "
            "--workdir"
        )
    write_json(path, data)
    write_json(workdir / "config.json", config)
    barrier("workdir")


def _need_shared(workdir: Path) -> None:
    """Raises UserError where this process does not see what process 0 writes: a file that no other run has left."""
    sign = workdir / exchange("sign", f".shared.{uuid.uuid4().hex}")[0]
    if is_writer():
        workdir.mkdir(parents=True, exist_ok=True)
        sign.touch()
    barrier("sign")
    deadline = time.monotonic() + SHARED_S
    while not sign.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={workdir}: found nothing of what process 0 writes there, expected one folder for all "
                "processes; choose a --workdir on a file system that all hosts share"
            )
        os.listdir(workdir) if workdir.is_dir() else None  # makes a network file system look again
        time.sleep(0.2)
    barrier("sign was seen")
    if is_writer():
        sign.unlink()


def recorded_config(workdir: Path) -> dict[str, Any] | None:
    """The config of the run in a workdir; None where there is none."""
    return read_json(workdir / "config.json")


def recorded_data(workdir: Path) -> dict[str, Any] | None:
    """What the run in a workdir is trained on, a `Subset.summary`; None where there is none."""
    return read_json(workdir / "data.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of a run holds; None where there is no file.

    Raises:
        UserError: the file holds no JSON.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(
            f"{path}: found no JSON ({error}), expected what a run recorded; choose a new --workdir"
        ) from error


def _need_same(workdir: Path, changed: list[str]) -> None:
    if changed:
        listed = "; ".join(changed[:4]) + (" ..." if len(changed) > 4 else "")
        raise UserError(
            f"{workdir / 'config.json'}: found a run of another config ({listed}), expected the same one; "
            "choose a new --workdir or undo the change"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)
