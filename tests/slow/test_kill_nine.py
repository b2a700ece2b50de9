"""kill -9 ten times at random moments, in start-up, steps and saving: the end is bit-identical to an undisturbed run.

Took eleven minutes on two busy cores: python -m pytest -m slow tests/slow/test_kill_nine.py -s
"""

import json
import os
import random
import signal
import time

import jax
import numpy as np
import pytest
from command import TINY
from orbax.checkpoint import v1 as ocp

KILLS = 10
STEPS = 600  # 150 epochs of floor(36 / 8) steps, a checkpoint after each
WORDS = (
    f"--config={TINY}", "--config.data.dir=prepared", "--config.data.val_share=0.25", "--config.eval_every=10",
    "--config.epochs=150", "--config.checkpoint_every=1", "--config.log_every=5",
)  # fmt: skip


def outcome(workdir):
    """Final arrays by path, metrics without what depends on the clock, results."""
    state = ocp.load_checkpointables((workdir / f"checkpoints/{STEPS}").absolute())["state"]
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((workdir / "results.json").read_text())
    return arrays, [{**row, "images_per_second": 0} for row in rows], {**results, "seconds": 0}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0])
def test_ten_kills_change_nothing(command, seed):
    start = time.monotonic()
    assert command(*WORDS, "--workdir=undisturbed").returncode == 0
    alone = time.monotonic() - start
    draw = random.Random(seed)
    reached = []
    for kill in range(KILLS):
        # Every third kill hits the start-up; the others come when steps and saves are under way.
        delay = draw.uniform(0.1, 4.0) if kill % 3 == 0 else draw.uniform(4.0, 4.0 + alone / KILLS)
        log = open(command.folder / "log.txt", "a")
        process = command.start(*WORDS, "--workdir=killed", stderr=log.fileno())
        time.sleep(delay)
        assert process.poll() is None, (command.folder / "log.txt").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        folder = command.folder / "killed/checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        reached.append(max((int(name) for name in names if name.isdigit()), default=0))
        print(
            f"kill {kill + 1} after {delay:.2f} s: step {reached[-1]}, in the folder: {', '.join(sorted(names)) or '-'}"
        )
    assert len(set(reached)) > 3, "the kills came too early to say anything"
    done = command(*WORDS, "--workdir=killed")
    assert done.returncode == 0, done.stderr
    expected, found = outcome(command.folder / "undisturbed"), outcome(command.folder / "killed")
    assert expected[0].keys() == found[0].keys()
    assert all(np.array_equal(found[0][name], array) for name, array in expected[0].items())
    assert found[1:] == expected[1:]
    print(
        f"undisturbed {alone:.0f} s; {len(expected[0])} arrays bit-identical, {len(expected[1])} lines of metrics equal"
    )
