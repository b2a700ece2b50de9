"""A run that goes on with another number of devices: the same batches and, to rounding, the same losses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, TINY, Command

TRAIN = (
    f"--config={TINY}", "--config.data.dir=prepared", "--config.epochs=2", "--config.checkpoint_every=1",
    "--config.checkpoints_kept=100",
)  # fmt: skip
STEPS = 12  # 2 epochs of 48 / 8 steps


def run(command: Command, workdir: str, devices: int) -> dict[str, list[str]]:
    """Run to the end on virtual CPU devices; return the names of the images of each step."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/read_spy.py"), *TRAIN, f"--workdir={workdir}", f"--config.devices={devices}"],
        cwd=command.folder, env={**command.environment(), "JAX_NUM_CPU_DEVICES": str(devices)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{devices} cpu device(s)" in done.stdout
    read = json.loads((command.folder / "read_0.json").read_text())
    return {step: told["batch"] for step, told in read.items()}


def rewind(workdir: Path, step: int) -> None:
    """Remove what comes after a step, as a kill there would have left it."""
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def losses(workdir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([[row[name] for name in ("loss", "identity", "triplet", "pair_triplet")] for row in rows])


@pytest.mark.slow
def test_from_eight_devices_to_two_and_back(command):
    whole = run(command, "whole", 8)
    assert len(whole) == STEPS
    one, other = command.folder / "whole", command.folder / "other"
    shutil.copytree(one, other)
    rewind(other, 4)
    batches = run(command, "other", 2)
    assert batches == {step: whole[step] for step in batches} and min(map(int, batches)) == 4
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-5)
    rewind(other, 8)  # which two devices have trained
    batches = run(command, "other", 8)
    assert batches == {step: whole[step] for step in batches} and min(map(int, batches)) == 8
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-5)
    changed = losses(other)[4:8] != losses(one)[4:8]
    assert changed.any()  # they were computed anew
