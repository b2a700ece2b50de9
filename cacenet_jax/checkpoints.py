"""Checkpoints of a run: written behind the training, the newest and the best by validation mAP kept (orbax v1)."""

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from cacenet_jax.config import differences
from cacenet_jax.errors import UserError
from cacenet_jax.processes import barrier, exchange, from_writer, is_writer
from cacenet_jax.train_step import TrainState

METRIC = "mAP"
_SHARED_S = 60.0  # a network file system may show a new file that late

# Fields of config.model that change no parameter's meaning: evaluation may choose them anew.
_NOT_OF_THE_NETWORK = ("model.pair_memory_mib", "model.dtype", "model.clue_weight")
# Fields that make another image or another map of it, also where no parameter's shape tells; beside data.options.
_OF_THE_MAPS = ("data.name", "model.backbone", "model.width", "model.last_stride")
_CHECKED = "data.options.check_counts"  # changes no record


def check_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Checks, and changes nothing, that a run of this config may begin or go on in a workdir.

    Raises:
        UserError: the workdir cannot be one, or holds a run of another config; names the fields that differ.
    """
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        found = "a folder that cannot be written" if existing.is_dir() else "a file"
        raise UserError(f"--workdir={workdir}: found {found}, {existing}, expected a folder; choose another --workdir")
    recorded = _recorded(workdir)
    if recorded is not None:
        _need_same(workdir, differences(recorded, json.loads(json.dumps(config))))
    elif (workdir / "checkpoints").exists():
        raise UserError(f"{workdir}: found checkpoints without config.json, expected both; choose a new --workdir")


def check_network(workdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError where the run in a workdir trained another network than this config describes."""
    found = differences(_recorded(workdir) or {}, json.loads(json.dumps(config)))
    of_the_network = [d for d in found if d.startswith("model.") and d.split(":")[0] not in _NOT_OF_THE_NETWORK]
    _need_same(workdir, of_the_network)


def check_beginning(workdir: Path, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Checks that a run of this config, on this data, may begin from the network in a workdir.

    Raises:
        UserError: there is none; its maps are made in another way; or it was trained on other records: it may know the
            validation identities, and its classes would mean other people.
    """
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"config.init_from: found no checkpoints in {workdir}, expected some; train that network first")
    found = differences(_recorded(workdir) or {}, json.loads(json.dumps(config)))
    fields = {d: d.split(":")[0] for d in found}
    other = [d for d, f in fields.items() if f in _OF_THE_MAPS or (f.startswith("data.options.") and f != _CHECKED)]
    recorded = _read_json(workdir / "data.json")
    if recorded is not None and recorded != data:
        other.append(f"training data: {recorded} -> {data}")
    if other:
        raise UserError(
            f"config.init_from: found {workdir}, a network of another kind ({'; '.join(other)}), expected this run's "
            "backbone and training identities; name another workdir, or take its config.data and config.model fields"
        )


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
    recorded = _read_json(path)
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
    deadline = time.monotonic() + _SHARED_S
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


def _recorded(workdir: Path) -> dict[str, Any] | None:
    return _read_json(workdir / "config.json")


def _read_json(path: Path) -> dict[str, Any] | None:
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


def _nothing_there(directory: Path) -> UserError:
    return UserError(
        f"{directory}: found no complete checkpoint, expected one; train first with --mode=train and the same --workdir"
    )


class Checkpoints:
    """The checkpoints under workdir/checkpoints."""

    def __init__(self, workdir: Path, *, create: bool = True):
        """Opens the folder, for training creates it and removes the leftovers of killed saves.

        Raises:
            UserError: there are no checkpoints and none are to be created.
        """
        if not create and not (workdir / "checkpoints").is_dir():
            raise _nothing_there(workdir / "checkpoints")
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m[METRIC], n=1, keep_checkpoints_without_metrics=False)
        self._directory = (workdir / "checkpoints").absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=create,  # while another process trains here, they are no leftovers
        )

    def save(self, step: int, state: TrainState, validation_map: float | None = None) -> None:
        """Saves in the background; with a validation mAP the checkpoint can become the best.

        In several processes all save, and the arrays are those of all their devices (`DeviceMap.to_global`).
        """
        metrics = None if validation_map is None else {METRIC: validation_map}
        self._checkpointer.save_checkpointables_async(step, {"state": state}, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """The step with the highest validation mAP, None if no checkpoint carries one."""
        scored = [(c.metrics[METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def agreed(self, step: int) -> int:
        """The step that process 0 means, 0 for none; waited for where a network file system shows it late.

        Raises:
            UserError: this process does not see it.
        """
        step = int(from_writer("checkpoint", float(step)))
        deadline = time.monotonic() + _SHARED_S
        while step and step not in self.steps():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._directory}: found no step {step} in process {jax.process_index()}, expected what process 0 "
                    "sees; choose a --workdir on a file system that all hosts share"
                )
            time.sleep(0.2)
            self._checkpointer.reload()
        return step

    def num_identities(self) -> int:
        """Training identities of the network in the newest checkpoint, from the shape of its classifier."""
        if not self.steps():
            raise _nothing_there(self._directory)
        metadata = self._checkpointer.checkpointables_metadata(self.steps()[-1]).metadata["state"]
        return metadata["params"]["individual_head"]["classifier"]["kernel"].shape[-1]

    def load(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The state saved at a step, as every process loads it.

        Args:
            step: one of `steps()`.
            like: arrays, or their shapes and types, of the state.
            sharding: how each of them is laid out, over the devices of all processes.

        Raises:
            UserError: the checkpoint does not hold the arrays that `like` describes.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        try:
            return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._directory}/{step}: the checkpoint does not fit this network ({reason}); "
                "use the config that it was trained with, or choose a new --workdir"
            ) from error

    def parameters(self, step: int, sharding: jax.sharding.Sharding) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and statistics saved at a step, whatever the network: nested dictionaries."""
        metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata)
        state = self._checkpointer.load_checkpointables(step, {"state": like})["state"]
        return state["params"], state["batch_stats"]

    def close(self, seconds: float | None = None) -> None:
        """Waits for what is being saved, so many seconds at most, and releases the folder."""
        if seconds is None:
            self._checkpointer.close()
            return

        def close() -> None:
            with contextlib.suppress(Exception):  # the error that ends the run is told, not this one
                self._checkpointer.close()

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(seconds)
