"""Workdir of a run, bound to one config (config.json) and one training set (data.json)."""

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cacenet_jax.data import json_files
from cacenet_jax.distributed.processes import barrier, exchange, is_writer
from cacenet_jax.errors import UserError
from cacenet_jax.run.records import differences, has_form

SHARED_S = 60.0  # maximum delay for a new file to appear on a network file system

# Fields of config.model that do not affect the meaning of any parameter; evaluation may override them.
_MAY_CHANGE_AFTER_TRAINING = ("model.pair_memory_mib", "model.dtype")


def check_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Check that a run with this config can start or resume in a workdir, without writing anything.

    Raises:
        UserError: the folder is not writable, contains checkpoints without a config, or belongs to a run with another
            config; in the last case the differing fields are listed.
    """
    check_writable(workdir)
    recorded = recorded_config(workdir)
    if recorded is not None:
        _check_unchanged(workdir, differences(recorded, config))
    elif (workdir / "checkpoints").exists():
        raise UserError(f"{workdir}: found checkpoints without config.json, expected both; choose a new --workdir")


def check_writable(workdir: Path) -> None:
    """Raise UserError if nothing can be written to a folder, or to the folder that it would be created in."""
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        obstacle = "a folder that cannot be written" if existing.is_dir() else "a file"
        raise UserError(
            f"--workdir={workdir}: found {obstacle}, {existing}, expected a folder; choose another --workdir"
        )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a workdir while the block runs; the system releases the lock when the process ends.

    Raises:
        UserError: another run is in progress in it.
    """
    if not is_writer():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"--workdir={workdir}: found another run in progress ({lock.read().strip() or 'unknown process'}), expected "
                "none; wait for its end, stop it, or choose another --workdir"
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def check_network(workdir: Path, config: dict[str, Any], scoring_fields: Collection[str] = ()) -> None:
    """Check that a config describes the network trained in a workdir.

    Args:
        workdir: folder of the run.
        config: nested dictionary of the config.
        scoring_fields: fields of config.model.pair that evaluation may override (`PairStage.scoring_fields`).

    Raises:
        UserError: the config describes another network.
    """
    may_change = {*_MAY_CHANGE_AFTER_TRAINING, *(f"model.pair.{field}" for field in scoring_fields)}
    changed = differences(recorded_config(workdir) or {}, config)
    network = [d for d in changed if d.startswith("model.") and d.split(":")[0] not in may_change]
    _check_unchanged(workdir, network)


def claim_workdir(workdir: Path, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Bind a workdir to a config and a training set. Call `check_workdir` first.

    Process 0 writes config.json and data.json; the other processes wait and check that they see the same folder.

    Args:
        workdir: folder of the run.
        config: the run's config.
        data: summary of the training set (`Subset.summary`).

    Raises:
        UserError: the run was started on other training data, whose identities define its classes, or this process does
            not see the folder that process 0 writes to.
    """
    _check_shared(workdir)
    if not is_writer():
        barrier("workdir")
        return
    check_workdir(workdir, config)
    path = workdir / "data.json"
    recorded = recorded_data(workdir)
    if recorded is not None and recorded != data:
        raise UserError(
            f"{path}: found a run on {recorded}, expected the current data, {data}; restore the data set or choose a new "
            "--workdir"
        )
    write_json(path, data)
    write_json(workdir / "config.json", config)
    barrier("workdir")


def _check_shared(workdir: Path) -> None:
    """Raise UserError unless this process sees a uniquely named marker file written by process 0."""
    marker = workdir / exchange("marker", f".shared.{uuid.uuid4().hex}")[0]
    if is_writer():
        workdir.mkdir(parents=True, exist_ok=True)
        marker.touch()
    barrier("marker")
    deadline = time.monotonic() + SHARED_S
    while not marker.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={workdir}: found nothing of what process 0 writes there, expected one folder for all "
                "processes; choose a --workdir on a file system that all hosts share"
            )
        os.listdir(workdir) if workdir.is_dir() else None  # refreshes the view of a network file system
        time.sleep(0.2)
    barrier("marker seen")
    if is_writer():
        marker.unlink()


def recorded_config(workdir: Path) -> dict[str, Any] | None:
    """Return the config of the run in a workdir, or None if there is no run.

    Raises:
        UserError: config.json contains no config.
    """
    config = read_json(workdir / "config.json")
    if config is not None and not has_form(config):
        raise UserError(
            f"{workdir / 'config.json'}: found no config, expected the one that a run recorded; restore it or choose "
            "another workdir"
        )
    return config


def recorded_data(workdir: Path) -> dict[str, Any] | None:
    """Return the training set of the run in a workdir (a `Subset.summary`), or None if there is no run."""
    return read_json(workdir / "data.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of a run, or return None if it does not exist.

    Raises:
        UserError: the file contains no JSON object.
    """
    return json_files.read(path, "restore it or choose a new --workdir")


def _check_unchanged(workdir: Path, changed: list[str]) -> None:
    """Raise UserError if any config field has changed."""
    if changed:
        listed = "; ".join(changed[:4]) + (" ..." if len(changed) > 4 else "")
        raise UserError(
            f"{workdir / 'config.json'}: found a run of another config ({listed}), expected the same one; "
            "choose a new --workdir or undo the change"
        )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_file(path, json.dumps(value, indent=2) + "\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically; a failed write leaves the old file and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
