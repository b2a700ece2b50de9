"""Checkpoints of a run: written behind the training, the newest and the best by validation mAP kept (orbax v1)."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from cacenet_jax.distributed.processes import from_writer
from cacenet_jax.errors import UserError
from cacenet_jax.run.workdir import SHARED_S
from cacenet_jax.train_step import TrainState

METRIC = "mAP"


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
