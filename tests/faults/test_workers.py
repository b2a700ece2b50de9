"""Reader processes (config.data.workers) end with the run, whatever ends it, and leave no shared memory behind."""

import os
import signal
import time

import pytest
from command import PATIENCE, TINY

WORDS = (f"--config={TINY}", "--config.data.dir=prepared", "--config.data.workers=2", "--workdir=run")
ENDS = {
    "SIGTERM": (os.kill, 143, "terminated; the same command continues from step"),
    "SIGINT": (os.killpg, 130, "interrupted; the same command continues from step"),  # Ctrl-C goes to all of them
    "SIGKILL": (os.kill, -signal.SIGKILL, ""),
}


def group_is_empty(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("name", ENDS)
def test_workers_end_with_a_run_that_is_stopped(command, name):
    kill, code, told = ENDS[name]
    log, metrics = command.folder / "log", command.folder / "run/metrics.jsonl"
    process = command.start(*WORDS, "--config.epochs=5000", stderr=os.open(log, os.O_WRONLY | os.O_CREAT))
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):  # the workers have started
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    kill(process.pid, signal.Signals[name])
    assert process.wait(timeout=PATIENCE) == code, log.read_text()
    deadline = time.monotonic() + 30
    while not group_is_empty(process.pid):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
    text = log.read_text()
    assert told in text and "Traceback" not in text
    assert name == "SIGKILL" or "leaked" not in text  # after a kill, the system's tracker tells what it removes


def test_a_run_that_comes_to_its_end_leaves_no_shared_memory(command):
    done = command(*WORDS, "--config.epochs=1", "--config.optim.warmup_epochs=0")
    assert done.returncode == 0 and "leaked" not in done.stderr and "Traceback" not in done.stderr, done.stderr
