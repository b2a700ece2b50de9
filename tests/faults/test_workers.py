"""Reader processes (config.data.workers) end with the run, whatever ends it, and leave no shared memory behind."""

import os
import signal
import sys
import time

import pytest
from command import PATIENCE, TINY

WORDS = (f"--config={TINY}", "--config.data.dir=prepared", "--config.data.workers=2", "--workdir=run")
ENDS = {
    "one SIGTERM": (os.kill, signal.SIGTERM, 143, "terminated; the same command continues from step"),
    # As timeout(1) and systemd do.
    "SIGTERM for all": (os.killpg, signal.SIGTERM, 143, "terminated; the same command continues from step"),
    "SIGINT for all": (os.killpg, signal.SIGINT, 130, "interrupted; the same command continues from step"),  # Ctrl-C
    "one SIGKILL": (os.kill, signal.SIGKILL, -signal.SIGKILL, ""),
}


def group_is_empty(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "name", [name if name == "SIGTERM for all" else pytest.param(name, marks=pytest.mark.slow) for name in ENDS]
)
def test_workers_end_with_a_run_that_is_stopped(command, name):
    kill, number, code, told = ENDS[name]
    log, metrics = command.folder / "log", command.folder / "run/metrics.jsonl"
    process = command.start(*WORDS, "--config.epochs=5000", stderr=os.open(log, os.O_WRONLY | os.O_CREAT))
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):  # the workers have started
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    kill(process.pid, number)
    assert process.wait(timeout=PATIENCE) == code, log.read_text()
    deadline = time.monotonic() + 30
    while not group_is_empty(process.pid):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
    text = log.read_text()
    assert told in text and "Traceback" not in text
    assert number == signal.SIGKILL or "leaked" not in text  # after a kill, the system's tracker tells what it removes


@pytest.mark.slow
def test_a_run_that_comes_to_its_end_leaves_no_shared_memory(command):
    done = command(*WORDS, "--config.epochs=1", "--config.optim.warmup_epochs=0")
    assert done.returncode == 0 and "leaked" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_batches_that_are_left_open_leave_no_shared_memory_and_do_not_keep_the_process(command):
    command(*WORDS, "--config.epochs=1", "--config.optim.warmup_epochs=0")
    code = (
        "from absl import flags\n"
        "from cacenet_jax import experiment, train\n"
        "from cacenet_jax.data.pipeline import training_batches\n"
        "from cacenet_jax.data.sampler import PKSampler\n"
        "from cacenet_jax.run.completion import from_dict\n"
        "if __name__ == '__main__':\n"
        "    import json\n"
        "    flags.FLAGS(['left open'])\n"
        "    data = experiment.read(from_dict(json.load(open('run/config.json')), 'run/config.json')).data\n"
        "    subset = train.cut_training(data, train.prepare_data(data, ('train',))).train\n"
        "    sampler = PKSampler(subset.labels, data.num_ids, data.images_per_id, 0)\n"
        "    batches = training_batches(\n"
        "        subset, sampler, height=32, width=16, first_step=0, last_step=1000, workers=2\n"
        "    )\n"
        "    print(len(next(batches).labels))\n"
    )
    (command.folder / "left_open.py").write_text(code)
    [done] = command.together([sys.executable, "left_open.py"])
    assert done.returncode == 0 and done.stdout and "leaked" not in done.stderr, done.stderr
