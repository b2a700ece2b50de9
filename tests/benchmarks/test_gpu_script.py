"""benchmarks/gpu.sh: every benchmark is run, a failing one does not stop the others, and the exit code tells."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Stands for Python: has the modules in $HAS, and fails or hangs for the benchmarks that are named so.
FAKE = """#!/usr/bin/env bash
if [[ "$1" == -c ]]; then
  for name in "${@:3}"; do [[ " $HAS " == *" $name "* ]] || exit 1; done
  [[ "$2" == *"import benchmarks"* && -n "${BARE:-}" ]] && { printf "Traceback\\nNo module named 'flax'" >&2; exit 1; }
  [[ "$2" == *default_backend* && -n "${NO_GPU:-}" ]] && exit 1
  exit 0
fi
echo "ran $*"
[[ "$*" == *"$HANGS"* && -n "$HANGS" ]] && sleep 60
[[ "$*" == *"$FAILS"* && -n "$FAILS" ]] && exit 3
exit 0
"""


def run(tmp_path, *arguments, **settings):
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    settings = {"HAS": "torch grain tensorflow_datasets array_record", "FAILS": "", "HANGS": ""} | settings
    env = os.environ | {"PYTHON": str(fake), "OUT": str(tmp_path / "out")} | settings
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=env, timeout=600)


NAMES = ["pair_stage", "torch_bfloat16", "train_bfloat16", "profile", "retrieval", "input_pipeline", "scaling",
         "torch_float32", "train_float32", "parity"]  # fmt: skip


def summary(tmp_path):
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()[2:]
    return dict(line.split(maxsplit=1) for line in lines)


def test_all_are_run_and_listed(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(summary(tmp_path)) == NAMES
    assert all(result.startswith("passed") for result in summary(tmp_path).values())
    assert "-m benchmarks.pair_stage --dtype=bfloat16 --check" in (tmp_path / "out" / "pair_stage.log").read_text()


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    done = run(tmp_path, FAILS="benchmarks.retrieval")
    assert done.returncode == 1
    found = summary(tmp_path)
    assert found.pop("retrieval").startswith("FAILED with exit code 3")
    assert len(found) == len(NAMES) - 1 and all(result.startswith("passed") for result in found.values())


def test_what_lacks_a_library_is_skipped_and_said(tmp_path):
    done = run(tmp_path, HAS="tensorflow_datasets")
    assert done.returncode == 0
    skipped = {name for name, result in summary(tmp_path).items() if result.startswith("skipped: ")}
    assert skipped == {"torch_bfloat16", "torch_float32", "parity", "input_pipeline"}


def test_the_limit_holds(tmp_path):
    done = run(tmp_path, "--limit=6", "--only=pair_stage,profile", HANGS="benchmarks.pair_stage")
    assert done.returncode == 1
    assert summary(tmp_path)["pair_stage"].startswith("FAILED: out of time")
    assert summary(tmp_path)["profile"] == "FAILED: no time left"


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    done = run(tmp_path, "--dry-run", NO_GPU="1")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == NAMES
    assert not (tmp_path / "out").exists()


def test_help_wrong_arguments_and_no_gpu(tmp_path):
    assert "Usage: benchmarks/gpu.sh" in run(tmp_path, "--help").stdout
    wrong = run(tmp_path, "--fast")
    assert wrong.returncode == 2 and "unknown argument --fast" in wrong.stderr
    assert run(tmp_path, "--limit=soon").returncode == 2
    bare = run(tmp_path, BARE="1")
    assert bare.returncode == 1 and "cannot import the benchmarks: No module named 'flax'" in bare.stderr
    none = run(tmp_path, NO_GPU="1")
    assert none.returncode == 1 and "no accelerator" in none.stderr


@pytest.mark.parametrize("name", ["pair_stage", "train_step", "torch_step", "retrieval", "scaling", "input_pipeline"])
def test_every_command_names_a_module_that_exists(name):
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert f"benchmarks.{name}" in SCRIPT.read_text()
