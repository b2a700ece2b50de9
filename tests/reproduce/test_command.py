"""--mode=reproduce as a user types it: mistakes in one line, and a study that is killed goes on."""

import os
import signal
import time

import pytest
from command import ROOT

ABLATION = ROOT / "configs/synthetic_ablation.py"
TINY = (
    f"--config={ABLATION}", "--mode=reproduce", "--workdir=study", "--config.data.dir=prepared", "--config.epochs=2",
    "--config.optim.warmup_epochs=1", "--config.log_every=1", "--config.data.options.num_train_ids=8",
    "--config.data.options.num_test_ids=4", "--config.data.options.images_per_id=6", "--config.data.height=32",
    "--config.data.width=16", "--config.data.num_ids=4", "--config.data.images_per_id=2",
    "--config.model.backbone=resnet_tiny", "--config.model.backbone_fields.width=8", "--config.model.embed_dim=16",
    "--config.eval.top_k=8", "--config.data.root=nowhere",
)  # fmt: skip

MISTAKES = {
    "no table": ((*TINY,), ("--table: found none", "topk or all")),
    "unknown table": ((*TINY, "--table=7"), ("--table: found '7'",)),
    "seeds": ((*TINY, "--table=1", "--seeds=0"), ("--seeds: found '0'", "0,4,7")),
    "config.seed": ((*TINY, "--table=1", "--config.seed=2"), ("--config.seed", "--seeds")),
    "a row": ((f"--config={ABLATION}:normal", *TINY[1:], "--table=1"), ("--config: found variant 'normal'", "--mode=train")),
    "unknown row": ((f"--config={ABLATION}:fly", "--workdir=study"), ("variant 'fly'", "individual_gcn", "the colon")),
    "another mode": ((f"--config={ABLATION}", "--workdir=study", "--table=1"), ("--table: given with --mode=train",)),
    "no data": ((*TINY, "--table=5"), ("nowhere: no data set found", "withdrawn")),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(command, case):
    words, told = MISTAKES[case]
    done = command(*words)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert all(text in lines[0] for text in told), lines[0]
    assert list(command.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_that_is_killed_trains_what_is_missing(command):
    """Killed by SIGKILL and by SIGTERM, in a later run each time; then every row is there, each trained once."""
    words = (*TINY, "--table=1,5,topk", "--seeds=1", "--config.checkpoint_every=1")
    for at, how in (("individual", signal.SIGKILL), ("individual_gcn", signal.SIGTERM)):
        process = command.start(*words, stderr=os.open(os.devnull, os.O_WRONLY))
        checkpoints = command.folder / f"study/runs/{at}/seed_0/checkpoints"
        deadline = time.monotonic() + 600
        while not (checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, how)
        assert process.wait() == (-9 if how == signal.SIGKILL else 143)
        assert not (command.folder / f"study/runs/{at}/seed_0/results.json").exists()
    results = {path: path.stat().st_mtime_ns for path in command.folder.glob("study/runs/*/seed_0/results.json")}
    assert {path.parts[-3] for path in results} == {"full", "individual", "clues"}
    done = command(*words)
    assert done.returncode == 0, done.stderr
    begun = [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert begun == ["== individual_gcn", "== normal"]
    assert "continuing study/runs/individual_gcn/seed_0 from step" in done.stdout
    assert all(path.stat().st_mtime_ns == then for path, then in results.items())
    assert "occluded_duke: not run, data absent: " in done.stdout
    table = (command.folder / "study/table_1.md").read_text()
    assert table.count("1 of 1") == 5 and "failed" not in table
    assert len((command.folder / "study/table_topk.csv").read_text().splitlines()) == 4  # K of 0, 10, 16
    before = {path: path.stat().st_mtime_ns for path in command.folder.rglob("runs/**/*") if path.is_file()}
    again = command(*words)
    assert again.returncode == 0 and "==" not in again.stdout and again.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in command.folder.rglob("runs/**/*") if path.is_file()} == before
