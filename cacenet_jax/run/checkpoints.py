"""Asynchronous checkpoints of a run (orbax v1), keeping the newest and the best by validation mAP."""

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
            create: create the folder and remove incomplete saves. Training passes True, readers pass False.

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
            cleanup_tmp_directories=create,  # a reader must not delete an unfinished save of an active run
        )

    def save(self, step: int, state: TrainState, validation_map: float | None = None) -> None:
        """Save a state in the background. Must be called by all processes.

        Args:
            step: training step.
            state: global arrays (`DeviceMap.to_global`).
            validation_map: mAP on the validation split. Checkpoints without it are never selected as the best.
        """
        metrics = None if validation_map is None else {METRIC: validation_map}
        self._checkpointer.save_checkpointables_async(step, {"state": state}, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints, in ascending order."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """Return the step with the highest validation mAP, or None if no checkpoint has one."""
        scored = [(c.metrics[METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def agree_on_step(self, step: int) -> int:
        """Return process 0's step in every process.

        Waits until the checkpoint is visible to this process, which may take a while on a network file system.

        Args:
            step: this process's choice, or 0 for no checkpoint.

        Raises:
            UserError: the checkpoint does not become visible to this process.
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
        """Return the number of training identities, from the shape of the classifier in the newest checkpoint."""
        if not self.steps():
            raise _no_checkpoint(self._directory)
        metadata = self._checkpointer.checkpointables_metadata(self.steps()[-1]).metadata["state"]
        return metadata["params"]["individual_head"]["classifier"]["kernel"].shape[-1]

    def load(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Load the state saved at a step. Must be called by all processes.

        Args:
            step: one of `steps()`.
            like: state of arrays or `jax.ShapeDtypeStruct`s with the expected shapes and dtypes.
            sharding: sharding of every array, over the devices of all processes.

        Raises:
            UserError: the checkpoint's arrays do not match `like`.
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
        """Load the parameters and batch statistics of a step as nested dictionaries, without building the network."""
        metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata)
        state = self._checkpointer.load_checkpointables(step, {"state": like})["state"]
        return state["params"], state["batch_stats"]

    def close(self, seconds: float | None = None) -> None:
        """Finish pending saves and release the folder.

        Args:
            seconds: maximum time to wait; None waits until all saves are complete.
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
