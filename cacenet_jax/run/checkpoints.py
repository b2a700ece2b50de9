"""Asynchronous checkpoints of a run (orbax v1); the newest and the best by validation mAP are kept."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from cacenet_jax.distributed.processes import broadcast_from_writer
from cacenet_jax.errors import UserError
from cacenet_jax.run.workdir import SHARED_S
from cacenet_jax.train_step import TrainState

METRIC = "mAP"


def _no_checkpoint(directory: Path) -> UserError:
    return UserError(
        f"{directory}: found no complete checkpoint, expected one; train first with --mode=train and the same --workdir"
    )


class Checkpoints:
    """Checkpoints in the folder workdir/checkpoints."""

    def __init__(self, workdir: Path, *, create: bool = True):
        """Open the folder.

        Args:
            workdir: folder of the run.
            create: create the folder and remove incomplete saves, as training does; readers pass False.

        Raises:
            UserError: the folder does not exist and `create` is False.
        """
        if not create and not (workdir / "checkpoints").is_dir():
            raise _no_checkpoint(workdir / "checkpoints")
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m[METRIC], n=1, keep_checkpoints_without_metrics=False)
        self._directory = (workdir / "checkpoints").absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=create,  # a reader must not remove the save of a run in progress
        )

    def save(self, step: int, state: TrainState, validation_map: float | None = None) -> None:
        """Save a state in the background; all processes call it.

        Args:
            step: training step.
            state: global arrays (`DeviceMap.to_global`).
            validation_map: mAP on the validation split; checkpoints without it are never the best.
        """
        metrics = None if validation_map is None else {METRIC: validation_map}
        self._checkpointer.save_checkpointables_async(step, {"state": state}, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """Return the step with the highest validation mAP, or None if no checkpoint has one."""
        scored = [(c.metrics[METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def agree_on_step(self, step: int) -> int:
        """Return process 0's step in every process, waiting for a network file system to show its checkpoint.

        Args:
            step: this process's choice; 0 for no checkpoint.

        Raises:
            UserError: the checkpoint does not appear in this process.
        """
        step = int(broadcast_from_writer("checkpoint", float(step)))
        deadline = time.monotonic() + SHARED_S
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
        """Return the number of training identities of the newest checkpoint, from its classifier's shape."""
        if not self.steps():
            raise _no_checkpoint(self._directory)
        metadata = self._checkpointer.checkpointables_metadata(self.steps()[-1]).metadata["state"]
        return metadata["params"]["individual_head"]["classifier"]["kernel"].shape[-1]

    def load(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Load the state saved at a step; all processes call it.

        Args:
            step: one of `steps()`.
            like: a state of arrays or `jax.ShapeDtypeStruct`s.
            sharding: sharding of every array, over the devices of all processes.

        Raises:
            UserError: the checkpoint's arrays differ from those that `like` describes.
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
        """Load parameters and batch statistics saved at a step as nested dictionaries, without knowing the network."""
        metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata)
        state = self._checkpointer.load_checkpointables(step, {"state": like})["state"]
        return state["params"], state["batch_stats"]

    def close(self, seconds: float | None = None) -> None:
        """Finish pending saves and release the folder.

        Args:
            seconds: longest wait; None waits until all saves are complete.
        """
        if seconds is None:
            self._checkpointer.close()
            return

        def close() -> None:
            with contextlib.suppress(Exception):  # the error that ends the run is the one to report
                self._checkpointer.close()

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(seconds)
