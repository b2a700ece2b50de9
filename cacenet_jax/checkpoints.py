"""Checkpoints of a run: written behind the training, the newest and the best by validation mAP kept (orbax v1)."""

import json
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from cacenet_jax.config import differences
from cacenet_jax.errors import UserError
from cacenet_jax.train_step import TrainState

METRIC = "mAP"


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Records the config in workdir/config.json, or checks that the run that is there has the same one.

    Raises:
        UserError: the workdir holds a run of another config; names the fields that differ.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = differences(json.loads(path.read_text()), json.loads(json.dumps(config)))
        if changed:
            raise UserError(
                f"{path}: found a run of another config ({'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}), "
                "expected the same one; choose a new --workdir or undo the change"
            )
    elif (workdir / "checkpoints").exists():
        raise UserError(f"{workdir}: found checkpoints without config.json, expected both; choose a new --workdir")
    write_json(path, config)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)


class Checkpoints:
    """The checkpoints under workdir/checkpoints."""

    def __init__(self, workdir: Path):
        """Opens the folder; leftovers of killed saves are removed."""
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m[METRIC], n=1, keep_checkpoints_without_metrics=False)
        self._directory = (workdir / "checkpoints").absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, validation_map: float | None = None) -> None:
        """Saves in the background; with a validation mAP the checkpoint can become the best."""
        metrics = None if validation_map is None else {METRIC: validation_map}
        self._checkpointer.save_checkpointables_async(step, {"state": state}, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """The step with the highest validation mAP, None if no checkpoint carries one."""
        scored = [(c.metrics[METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def num_identities(self) -> int:
        """Training identities of the network in the newest checkpoint, from the shape of its classifier."""
        if not self.steps():
            raise UserError(
                f"{self._directory}: found no complete checkpoint, expected one; train first with --mode=train and the same "
                "--workdir"
            )
        metadata = self._checkpointer.checkpointables_metadata(self.steps()[-1]).metadata["state"]
        return metadata["params"]["individual_head"]["classifier"]["kernel"].shape[-1]

    def load(self, step: int, like: TrainState) -> TrainState:
        """The state saved at a step.

        Raises:
            UserError: the checkpoint does not hold the arrays that `like` describes.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._directory}/{step}: the checkpoint does not fit this network ({reason}); "
                "use the config that it was trained with, or choose a new --workdir"
            ) from error

    def wait(self) -> None:
        """Returns when the last save is complete."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits and releases the folder."""
        self._checkpointer.close()
