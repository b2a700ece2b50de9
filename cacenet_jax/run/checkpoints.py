"""Checkpoints of a run (orbax v1): asynchronous, with a checksum per array, and older ones to fall back on.

A checkpoint is a folder workdir/checkpoints/STEP. Its metadata hold the shape, type and checksum of every array, which
`Checkpoints.restore` verifies; a damaged checkpoint is reported and the one before it is used.
"""

import contextlib
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from cacenet_jax.distributed.processes import barrier, broadcast_from_writer, exchange, is_writer
from cacenet_jax.errors import UserError, cannot_write, refusal
from cacenet_jax.run import integrity, orbax_errors
from cacenet_jax.run.integrity import DamagedError
from cacenet_jax.run.workdir import SHARED_S
from cacenet_jax.train_step import TrainState

T = TypeVar("T")


class Checkpoints:
    """Checkpoints in the folder workdir/checkpoints."""

    def __init__(self, workdir: Path, *, create: bool = True, keep: int = 3):
        """Open the folder.

        Args:
            workdir: folder of the run.
            create: create the folder and remove incomplete saves, as training does; readers pass False.
            keep: number of newest checkpoints that are kept, beside the best one.

        Raises:
            UserError: the folder does not exist and `create` is False.
        """
        self._workdir, self._directory = workdir, (workdir / "checkpoints").absolute()
        self._create, self._keep = create, keep
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._damaged: dict[int, str] = {}
        if not create and not self._directory.is_dir():
            raise self._none()

    # -- Reading ----------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint that is not known to be damaged, ascending."""
        return [step for step in self._folders() if step not in self._damaged and self._is_sound(step)]

    def best_step(self) -> int | None:
        """Return the step with the highest validation mAP, or None if no checkpoint has one."""
        scored = [
            (score, step) for step in self.steps() if (score := integrity.validation_map(self._directory / str(step)))
        ]
        return max(scored)[1] if scored else None

    def exist(self) -> bool:
        """Return True if process 0 sees a checkpoint, damaged or not."""
        return bool(broadcast_from_writer("checkpoints", float(bool(self._folders()))))

    def agree_on_step(self, step: int) -> int:
        """Return process 0's step in every process, waiting for a network file system to show its checkpoint.

        Args:
            step: this process's choice; 0 for no checkpoint.

        Raises:
            UserError: the checkpoint does not appear in this process.
        """
        step = int(broadcast_from_writer("checkpoint", float(step)))
        deadline = time.monotonic() + SHARED_S
        while step and step not in self._folders():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._directory}: found no step {step} in process {jax.process_index()}, expected what process 0 "
                    "sees; choose a --workdir on a file system that all hosts share"
                )
            time.sleep(0.2)
        return step

    def num_identities(self) -> int:
        """Return the number of training identities, from the shape of the newest checkpoint's classifier."""
        steps = self.steps()
        if not steps:
            raise self._none()
        folder = self._directory / str(steps[-1])
        kernel = integrity.record(folder).get("params/individual_head/classifier/kernel")
        if kernel is None or not kernel.shape:
            raise integrity.damage(folder, "it lists no classifier")
        return kernel.shape[-1]

    def restore(
        self, like: TrainState, sharding: jax.sharding.Sharding, *, best: bool = False
    ) -> tuple[int, TrainState]:
        """Load the newest checkpoint that is intact, reporting damaged ones; all processes call it.

        Args:
            like: a state of arrays or `jax.ShapeDtypeStruct`s.
            sharding: sharding of every array, over the devices of all processes.
            best: prefer the checkpoint with the highest validation mAP.

        Returns:
            Its step and state.

        Raises:
            UserError: there is no checkpoint, all are damaged, or the arrays differ from those that `like` describes.
        """
        return self._newest(lambda step: self.load(step, like, sharding), best)

    def restore_parameters(self, sharding: jax.sharding.Sharding) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Load parameters and batch statistics of the newest intact checkpoint, without knowing the network.

        Args:
            sharding: as in `restore`.

        Returns:
            Its step, the parameters and the statistics, as nested dictionaries.

        Raises:
            UserError: there is no checkpoint, or all are damaged.
        """
        step, (params, batch_stats) = self._newest(lambda step: self.parameters(step, sharding))
        return step, params, batch_stats

    def load(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Load and verify the state saved at a step; all processes call it.

        Args:
            step: one of `steps()`.
            like: as in `restore`.
            sharding: as in `restore`.

        Raises:
            DamagedError: the checkpoint is damaged.
            UserError: the checkpoint's arrays differ from those that `like` describes.
        """
        folder = self._directory / str(step)
        arrays = integrity.record(folder)
        if misfits := integrity.misfits(arrays, like):
            raise UserError(
                f"{folder}: the checkpoint does not fit this network ({misfits}); "
                "use the config that it was trained with, or choose a new --workdir"
            )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        return integrity.read(folder, arrays, abstract)

    def parameters(self, step: int, sharding: jax.sharding.Sharding) -> tuple[dict[str, Any], dict[str, Any]]:
        """Load and verify the parameters and batch statistics saved at a step, as nested dictionaries.

        Raises:
            DamagedError: the checkpoint is damaged.
        """
        folder = self._directory / str(step)
        arrays = integrity.record(folder)
        try:
            with integrity.quiet():
                metadata = ocp.checkpointables_metadata(folder).metadata["state"]
        except Exception as error:
            raise integrity.damage(folder, _line(error)) from error
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata)
        state = integrity.read(folder, arrays, abstract)
        return state["params"], state.get("batch_stats") or {}

    def _newest(self, load: Callable[[int], T], best: bool = False) -> tuple[int, T]:
        preferred = self.best_step() if best else None
        while True:
            steps = self.steps()
            step = preferred if preferred in steps else max(steps, default=0)
            step = self.agree_on_step(step or 0)
            if not step:
                raise self._none()
            problem, result = "", None
            try:
                result = load(step)
            except DamagedError as error:
                problem = str(error)
            problem = next(filter(None, exchange("damaged checkpoint", problem)), "")
            if not problem:
                if self._damaged and is_writer():
                    for message in self._damaged.values():
                        logging.warning("%s; using step %d", message, step)
                assert result is not None
                return step, result
            self._damaged[step] = problem

    def _folders(self) -> list[int]:
        """Return the steps of all finished checkpoint folders, ascending; unfinished ones have longer names."""
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def _is_sound(self, step: int) -> bool:
        """Check a checkpoint's metadata, and note if they are damaged."""
        try:
            integrity.record(self._directory / str(step))
            integrity.validation_map(self._directory / str(step))
        except DamagedError as error:
            self._damaged[step] = str(error)
        return step not in self._damaged

    def _none(self) -> UserError:
        if self._damaged:
            reasons = "; ".join(str(self._damaged[step]) for step in sorted(self._damaged)[-2:])
            return UserError(
                f"{self._directory}: found no intact checkpoint ({reasons}), expected one; restore it from a copy, or "
                "train again in a new --workdir"
            )
        return UserError(
            f"{self._directory}: found no complete checkpoint, expected one; train first with --mode=train and the same "
            "--workdir"
        )

    def kept(self) -> str:
        """Return a clause on the newest complete checkpoint, for error messages."""
        steps = self.steps()
        return f"step {steps[-1]} is the newest complete checkpoint" if steps else "no checkpoint is complete"

    # -- Saving -----------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: TrainState, validation_map: float | None = None) -> None:
        """Save a state in the background. Every process must call this method.

        Args:
            step: training step.
            state: global arrays (`DeviceMap.to_global`).
            validation_map: mAP on the validation split; checkpoints without it are never the best.

        Raises:
            UserError: this save, or the one before it, could not be written.
        """
        metrics = None if validation_map is None else {integrity.METRIC: validation_map}
        arrays = {name: list(integrity.describe(x)) for name, x in integrity.flatten(state).items()}
        with self._writing():
            save = functools.partial(
                self._open().save_checkpointables_async, step, {"state": state}, metrics=metrics,
                custom_metadata={integrity.ARRAYS: arrays}, force=True,
            )  # fmt: skip
            orbax_errors.attended(save)

    def close(self, seconds: float | None = None) -> None:
        """Finish pending saves and release the folder.

        Args:
            seconds: longest wait; None waits until all saves are complete.

        Raises:
            UserError: a pending save could not be written; not with `seconds`.
        """
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is None:
            return
        if seconds is None:
            with self._writing():
                orbax_errors.attended(checkpointer.close)
            return

        def close() -> None:
            with contextlib.suppress(Exception):  # the error that ends the run is the one to report
                checkpointer.close()

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(seconds)

    def _open(self) -> ocp.training.Checkpointer:
        """Return orbax's checkpointer, which must not see a damaged checkpoint."""
        if self._checkpointer is None:
            assert self._create, "opened for reading"
            self.steps()  # notes damaged ones
            if is_writer():
                for step in self._damaged:
                    _put_aside(self._directory / str(step), self._workdir / "damaged_checkpoints")
            barrier("damaged checkpoints")
            self._damaged.clear()
            orbax_errors.collect()
            policies = ocp.training.preservation_policies
            best = policies.BestN(
                get_metric_fn=lambda m: m[integrity.METRIC], n=1, keep_checkpoints_without_metrics=False
            )
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
                cleanup_tmp_directories=True,
            )
        return self._checkpointer

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an error of writing into a UserError that names the folder and the newest checkpoint."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            number = refusal(error)
            if number is not None:
                raise cannot_write(self._directory, number, self.kept()) from error
            raise UserError(
                f"{self._directory}: a checkpoint could not be written ({_line(error)}), expected a complete one; "
                f"{self.kept()}; start the same command again"
            ) from error


def _put_aside(folder: Path, where: Path) -> None:
    where.mkdir(exist_ok=True)
    target = where / folder.name
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)
    logging.warning("%s was damaged and is now in %s", folder, where)


def _line(error: BaseException) -> str:
    """Return a one-line summary of an error, without the source locations that TensorStore adds."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" [source locations")[0][:160]
