"""Training as a whole: it stops and goes on without a trace, keeps what it promises, and says what broke it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from command import PATIENCE, TINY

from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.metric_writer import MetricWriter
from cacenet_jax.run.workdir import claim_workdir
from cacenet_jax.train import check_finite

WORDS = (f"--config={TINY}", "--config.data.dir=prepared", "--config.data.val_share=0.25", "--config.eval_every=1")
STEPS = 12  # 3 epochs of floor(36 / 8) steps
TRAIN = (*WORDS, "--config.epochs=3", "--config.checkpoint_every=1")


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by its path; read by orbax alone, without the network."""
    from orbax.checkpoint import v1 as ocp

    state = ocp.load_checkpointables((workdir / "checkpoints" / str(step)).absolute())["state"]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition, process, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, request):
    """A run that nobody interrupts."""
    from command import Command

    command = Command(tmp_path_factory.mktemp("whole"), request.config.cache.mkdir("xla"))
    done = command(*TRAIN, "--workdir=run")
    assert done.returncode == 0, done.stderr
    return command


def test_an_uninterrupted_run_leaves_what_the_contract_says(whole):
    workdir = whole.folder / "run"
    results = json.loads((workdir / "results.json").read_text())
    for ranking in ("individual", "conditional", "mixed"):
        assert set(results[ranking]) == {"mAP", "rank1", "rank5", "rank10", "mINP"}
        assert all(0 <= value <= 1 for value in results[ranking].values())
    assert (results["top_k"], results["num_query"], results["num_gallery"]) == (8, 8, 16)
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 3
    rows = lines(workdir)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "val/individual_mAP" in row] == [4, 8, 12]
    events = list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1 and events[0].stat().st_size > 1000


def test_a_network_is_scored_on_other_data_and_keeps_its_own_results(whole):
    own = (whole.folder / "run/results.json").read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        pid, camid = number // 3 + 1, number % 3 + 1
        path = whole.folder / "others" / ("train", "query", "gallery")[number % 3] / f"000{pid}_c{camid}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    done = whole(
        *TRAIN, "--workdir=run", "--mode=evaluate", "--config.eval.data=reid_folder", "--config.data.root=others"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((whole.folder / "run/results_reid_folder.json").read_text())
    assert (found["data"], found["options"], found["num_query"], found["num_gallery"]) == ("reid_folder", {}, 4, 4)
    assert (whole.folder / "run/results.json").read_text() == own


def test_two_runs_are_equal_to_the_last_bit(whole):
    assert whole(*TRAIN, "--workdir=again").returncode == 0
    assert lines(whole.folder / "again") == lines(whole.folder / "run")
    one, two = saved(whole.folder / "run", STEPS), saved(whole.folder / "again", STEPS)
    assert one.keys() == two.keys() and len(one) > 20
    assert all(np.array_equal(one[name], two[name]) for name in one)
    results = [json.loads((whole.folder / name / "results.json").read_text()) for name in ("again", "run")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole):
    workdir = whole.folder / "killed"
    words = (*TRAIN, "--workdir=killed")
    for least in (2, 7):  # between validations
        process = whole.start(*words, stderr=os.open(os.devnull, os.O_WRONLY))
        wait_for(lambda least=least: max(steps(workdir), default=0) >= least, process)
        kill(process)
        assert max(steps(workdir)) < STEPS
    done = whole(*words)
    assert done.returncode == 0, done.stderr
    assert "continuing killed from step" in done.stdout
    assert lines(workdir) == lines(whole.folder / "run")  # each step once, with the same numbers
    one, two = saved(whole.folder / "run", STEPS), saved(workdir, STEPS)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    results = [json.loads((folder / "results.json").read_text()) for folder in (workdir, whole.folder / "run")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def test_the_newest_and_the_best_checkpoint_are_kept_and_the_best_can_be_evaluated(whole):
    workdir = whole.folder / "run"
    by_step = {
        row["step"]: max(row[f"val/{name}_mAP"] for name in ("individual", "conditional", "mixed"))
        for row in lines(workdir) if "val/individual_mAP" in row
    }  # fmt: skip
    best = max(by_step, key=lambda step: (by_step[step], step))
    assert {best, STEPS} <= set(steps(workdir)) and len(steps(workdir)) <= 4
    assert Checkpoints(workdir, create=False).best_step() == best
    shutil.copytree(workdir, whole.folder / "best")
    done = whole(*TRAIN, "--workdir=best", "--mode=evaluate", "--config.eval.checkpoint=best")
    assert done.returncode == 0, done.stderr
    assert json.loads((whole.folder / "best/results.json").read_text())["step"] == best


def test_evaluation_alone_gives_the_numbers_of_training(whole):
    workdir = whole.folder / "evaluated"
    shutil.copytree(whole.folder / "run", workdir)
    (workdir / "results.json").unlink()
    done = whole(*TRAIN, "--workdir=evaluated", "--mode=evaluate")
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in (workdir, whole.folder / "run")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_half_deleted_and_half_written_checkpoints_are_survived(whole):
    """A kill while orbax deletes an old checkpoint leaves part of it; one while it writes leaves a temporary folder."""
    workdir = whole.folder / "litter"
    shutil.copytree(whole.folder / "run", workdir)
    shutil.copytree(workdir / f"checkpoints/{STEPS}", workdir / "checkpoints/3")
    for path in sorted((workdir / "checkpoints/3").rglob("*"), reverse=True)[::2]:
        path.unlink() if path.is_file() else None
    shutil.copytree(workdir / f"checkpoints/{STEPS}", workdir / "checkpoints/13.orbax-checkpoint-tmp")
    done = whole(*TRAIN, "--workdir=litter")
    assert done.returncode == 0, done.stderr
    assert f"from step {STEPS} of {STEPS}" in done.stdout
    assert lines(workdir) == lines(whole.folder / "run")


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_terms(command):
    done = command(*WORDS, "--workdir=run", "--config.optim.learning_rate=1e30", "--config.eval_every=0")
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and error.startswith("error: step 2: found "), done.stderr
    assert "param_norm=inf" in error and "config.optim.learning_rate" in error and "Traceback" not in done.stderr
    assert not (command.folder / "run/results.json").exists()
    assert steps(command.folder / "run") == []  # nothing with a broken number is saved


def test_check_finite_names_every_broken_term():
    check_finite(7, {"loss": 1.0, "triplet": 0.0})
    with pytest.raises(UserError, match=r"step 7: found loss=nan, triplet=inf, expected finite"):
        check_finite(7, {"loss": float("nan"), "identity": 1.0, "triplet": float("inf")})


def test_a_killed_preparation_leaves_nothing_that_counts(command):
    people = ("--config.data.options.num_train_ids=400", "--config.data.options.images_per_id=12")
    process = command.start(*WORDS, *people, "--workdir=run", stderr=os.open(os.devnull, os.O_WRONLY))
    folder = command.folder / "prepared/synthetic_pedestrians"
    wait_for(lambda: folder.is_dir() and any(folder.rglob("incomplete.*")), process)
    time.sleep(0.3)
    kill(process)
    assert not list(folder.rglob("dataset_info.json")) and not (command.folder / "run").exists()
    done = command(*WORDS, "--workdir=run", "--config.optim.learning_rate=1e30", "--config.eval_every=0")
    assert "preparing synthetic_pedestrians: 72 of 72" in done.stderr
    assert not list(folder.rglob("incomplete.*"))


def test_metrics_of_a_stopped_run_are_cut_back_to_its_checkpoint(tmp_path):
    rows = [{"step": step, "loss": step / 10} for step in range(1, 6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 6, "lo')  # the kill came in the middle of a line
    writer = MetricWriter(tmp_path, first_step=3)
    writer.write(4, {"loss": 9.0})
    writer.close()
    assert lines(tmp_path) == [*rows[:3], {"step": 4, "loss": 9.0}]


def test_a_fresh_run_does_not_keep_the_lines_of_one_without_a_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    MetricWriter(tmp_path, first_step=0).close()
    assert lines(tmp_path) == []


def test_the_recorded_config_is_the_whole_config():
    recorded = json.loads(json.dumps(to_dict(paper())))
    assert recorded["data"]["num_ids"] == 4 and recorded["optim"]["learning_rate"] == 6.25e-3


def test_a_run_is_not_continued_on_other_data(tmp_path):
    """Resuming with other images would give the classes of the checkpoint to other people."""
    config, data = to_dict(paper()), {"images": 8, "identities": 2, "sha256": "a"}
    claim_workdir(tmp_path / "run", config, data)
    claim_workdir(tmp_path / "run", config, dict(data))
    with pytest.raises(UserError, match=r"data\.json.*'sha256': 'a'.*'sha256': 'b'.*--workdir"):
        claim_workdir(tmp_path / "run", config, data | {"sha256": "b"})
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == data
