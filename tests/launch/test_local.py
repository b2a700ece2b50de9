"""launch/local.sh for real: it trains, and all of its processes end together."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command import PATIENCE, Command
from launching import LAUNCH, RUN


def local(command: Command, *words: str) -> subprocess.Popen:
    env = {**command.environment(), "PYTHON": sys.executable}
    return subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), *words], cwd=command.folder, env=env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_local_ends_all_when_one_fails_and_passes_the_code_on(command):
    process = local(command, *RUN, "--config.data.dir=prepared", "--config.model.backbone=vgg")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    told = [line for line in err.splitlines() if "config.model.backbone" in line]
    # Both fail alike: one line is enough, but one that is a second later than the other has its own.
    assert told and {line[:3] for line in told} <= {"[0]", "[1]"}, err
    assert out.count("+ env") == 2 and not (command.folder / "run").exists()


@pytest.mark.slow
def test_local_trains_and_ctrl_c_ends_all(command):
    process = local(command, *RUN, "--config.data.dir=prepared", "--config.epochs=5000")
    checkpoints = command.folder / "run/checkpoints"
    deadline = time.monotonic() + PATIENCE
    while not (checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert {line[:3] for line in err.splitlines() if "interrupted: saving" in line} == {"[0]", "[1]"}, err
    assert {line[:3] for line in err.splitlines() if "interrupted; the same command" in line} == {"[0]"}, err
    assert "[0] synthetic_pedestrians: 48 images" in out and "2 cpu device(s) in 2 processes" in out
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
