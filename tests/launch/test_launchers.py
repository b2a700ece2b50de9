"""The launchers: help, dry runs, inputs that cannot be, and a pod of stand-ins."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import PATIENCE, ROOT, TINY
from launching import GPU, LAUNCH, POD, POD_RUN, RUN, SCRIPTS, SHARE_RUN, SPACE, TPU, launch, shown


def test_shellcheck_finds_nothing():
    checker = Path(sys.executable).with_name("shellcheck")
    files = [str(path) for path in sorted(LAUNCH.iterdir()) if path.suffix in (".sh", ".sbatch")]
    assert len(files) == len(SCRIPTS) + 1
    done = subprocess.run([checker, "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_what_a_script_does(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert "--dry-run" in done.stdout and "--workdir=" in done.stdout and len(done.stdout.splitlines()) > 10
    assert "set -euo pipefail" in (LAUNCH / script).read_text() and os.access(LAUNCH / script, os.X_OK)


MISTAKES = {
    "local.sh": {
        ("--processes", "two", *RUN): ("--processes", "'two'", "whole number"),
        ("--processes",): ("--processes", "no value"),
        ("--devices-per-process", "0", *RUN): ("--devices-per-process", "'0'"),
        ("--platform", "tpu", *RUN): ("--platform", "'tpu'", "cpu or cuda"),
        ("--port", "70000", *RUN): ("--port", "70000", "65535"),
        ("--workdir=run",): ("--config: not given", "configs/synthetic.py"),
        (f"--config={TINY}",): ("--workdir: not given",),
        (*RUN, "--num_processes=3"): ("--num_processes=3", "sets itself"),
        SPACE: ("--config: found it without =", "--config=VALUE"),
        ("--config=configs/none.py", "--workdir=run"): ("--config: found no file", "configs/none.py"),
    },
    "tpu_pod.sh": {
        (): ("command", "create-env, start, follow or stop"),
        ("begin", *POD): ("'begin'", "create-env, start, follow or stop"),
        ("start", "--zone", "z", "--", *RUN): ("--name: not given",),
        ("stop", "--name", "pod"): ("--zone: not given",),
        ("start", *POD): ("--config: not given",),
        ("start", *POD, *RUN): ("--config=", "after --"),
        ("start", *POD, "--", *SPACE): ("--config: found it without =",),
        ("start", *POD, "--", *RUN): ("--workdir: found run", "absolute path"),
        ("start", *POD, "--", *POD_RUN, "--config.data.dir=data/prepared"): ("--config.data.dir=", "absolute"),
        ("start", *POD, "--", "--config=configs/none.py", POD_RUN[1]): ("configs/none.py", "committed files"),
        ("follow", *POD, "--worker", "x"): ("--worker", "'x'"),
        ("stop", *POD, "--", *RUN): ("none for stop",),
    },
    "slurm.sbatch": {
        RUN: ("found no job", "sbatch"),
        ("--dry-run", "--per", "host", *RUN): ("--per", "'host'", "gpu or node"),
        ("--dry-run", "--nodes", "0", *RUN): ("--nodes", "'0'"),
        ("--dry-run", "--config=none.py", "--workdir=run"): ("--config", "none.py"),
        ("--dry-run", f"--config={TINY}"): ("--workdir: not given",),
        ("--dry-run", *SPACE): ("--config: found it without =",),
    },
    "xpk.sh": {
        (*GPU[2:], "--", *SHARE_RUN): ("--name", "lower-case"),
        (*GPU, "--image", "", "--", *SHARE_RUN): ("--image", "container image"),
        (*GPU, "--hosts", "x", "--", *SHARE_RUN): ("--hosts", "'x'"),
        (*GPU, "--accelerator", "h100", "--", *SHARE_RUN): ("--accelerator", "'h100'", "nvidia-"),
        (*TPU, "--topology", "2x2", "--", *SHARE_RUN): ("--hosts x --chips", "4 x 4", "the 4 chips"),
        (*GPU, "--topology", "2x2", "--", *SHARE_RUN): ("--topology", "TPU alone"),
        (*TPU, "--topology", "08x2", "--", *SHARE_RUN): ("--topology", "'08x2'"),
        (*GPU, "--with", "xpk", "--", *SHARE_RUN): ("--with", "not known"),
        (*GPU, "--", *SPACE): ("--config: found it without =",),
        (*GPU, "--", "--config=configs/none.py", SHARE_RUN[1]): ("--config: found no file", "configs/none.py"),
        (*GPU, "--", *RUN): ("--workdir: found run", "below /share"),
        (*GPU, *SHARE_RUN): ("--config=", "after --"),
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_inputs_that_cannot_be_are_told_in_one_line(script):
    for words, told in MISTAKES[script].items():
        done = launch(script, *words)
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (words, done)
        assert all(text in lines[0] for text in told), (words, lines)
        assert "expected" in lines[0] and not done.stdout


def test_programs_that_are_missing_are_named(tmp_path):
    """A machine with bash and its tools, without gcloud and kubectl."""
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    cases = {"tpu_pod.sh": ("stop", *POD), "xpk.sh": (*GPU, "--", *SHARE_RUN)}
    for (script, words), tool in zip(cases.items(), ("gcloud", "kubectl"), strict=True):
        done = launch(script, *words, env={"PATH": str(tmp_path)})
        assert done.returncode == 2 and f"error: {tool}: not found on this machine" in done.stderr


def test_local_dry_run_shows_a_command_for_each_process(tmp_path):
    words = ("--processes", "3", "--devices-per-process", "2", "--port", "8476", "--dry-run", *RUN, "--config.seed=1")
    commands = shown(launch("local.sh", *words, folder=tmp_path))
    assert len(commands) == 3
    for process, command in enumerate(commands):
        assert command == [
            "env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=2", sys.executable, "-m", "cacenet_jax.main", "--distributed",
            "--coordinator=127.0.0.1:8476", "--num_processes=3", f"--process_id={process}", *RUN, "--config.seed=1",
        ]  # fmt: skip
    commands = shown(launch("local.sh", "--platform", "cuda", "--devices-per-process", "2", "--dry-run", *RUN))
    assert [command[2] for command in commands] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    assert not list(tmp_path.iterdir())


def test_an_index_is_shared_without_a_config():
    words = ("--mode=index", "--workdir=run", "--images=photographs", "--index=photographs.lance")
    assert all(command[-4:] == list(words) for command in shown(launch("local.sh", "--dry-run", *words)))
    [command] = shown(launch("slurm.sbatch", "--dry-run", "--nodes", "3", "--gpus-per-node", "4", *words))
    assert command[-4:] == list(words)


def test_slurm_dry_run_starts_a_task_for_each_gpu_or_node():
    [command] = shown(launch("slurm.sbatch", "--dry-run", "--nodes", "3", "--gpus-per-node", "4", *RUN))
    assert command[0] == "srun" and {"--ntasks=12", "--ntasks-per-node=4", "--gpu-bind=none"} <= set(command)
    assert command[-4:] == ["cacenet_jax.main", "--distributed", *RUN]
    assert not any(word.startswith("JAX_LOCAL_DEVICE_IDS") for word in command)
    [command] = shown(launch("slurm.sbatch", "--dry-run", "--per", "node", "--gpus-per-node", "4", *RUN))
    # One task a node would be given one GPU by JAX; it is told to take all.
    assert {"--ntasks=2", "--ntasks-per-node=1", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"} <= set(command)


def test_slurm_takes_nodes_and_gpus_from_its_job():
    job = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_PER_NODE": "h100:8", "SLURM_CPUS_ON_NODE": "96",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    [command] = shown(launch("slurm.sbatch", "--dry-run", *RUN, env=job))
    assert {"--nodes=4", "--ntasks=32", "--cpus-per-task=12"} <= set(command)
    mistakes = {
        ("SLURM_SUBMIT_DIR", "/"): "submit the job from it",
        ("SLURM_GPUS_PER_NODE", "h100:4,a100:2"): "found 'h100:4,a100:2', expected GPUs of one type",
        ("SLURM_CPUS_ON_NODE", "4"): "found 4 CPUs on a node for 8 tasks",
    }
    for (name, value), told in mistakes.items():
        done = launch("slurm.sbatch", "--dry-run", *RUN, env={**job, name: value})
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("gpus", [("--gpus-per-node", "1"), ("--per", "node", "--gpus-per-node", "8")])
def test_slurm_joins_nothing_for_one_task(gpus):
    """--distributed refuses a single process."""
    [command] = shown(launch("slurm.sbatch", "--dry-run", "--nodes", "1", *gpus, *RUN))
    assert "--ntasks=1" in command and command[-3:] == ["cacenet_jax.main", *RUN]
    assert not any(word.startswith("JAX_LOCAL_DEVICE_IDS") for word in command)


def test_tpu_pod_dry_runs():
    for action, count in (("create-env", 4), ("follow", 1), ("stop", 1)):
        commands = shown(launch("tpu_pod.sh", action, *POD, "--project", "p", "--dry-run"))
        assert len(commands) == count
        cloud = [command for command in commands if command[0] == "gcloud"]
        assert all({"pod", "--zone=us-east5-a", "--project=p"} <= set(command) or "scp" in command for command in cloud)
    [command] = shown(launch("tpu_pod.sh", "start", *POD, "--dry-run", "--", *POD_RUN))
    assert "--worker=all" in command and "cacenet_jax.main --distributed --config=" in command[-1]
    [command] = shown(launch("tpu_pod.sh", "start", *POD, "--one-host", "--dry-run", "--", *POD_RUN))
    assert "--distributed" not in command[-1]


GCLOUD = """#!/usr/bin/env bash
# Two workers on this machine: runs what is to run on them, each in a home of its own.
worker=all script=""
for word in "$@"; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) script=${word#*=} ;; esac
done
for i in 0 1; do
  [[ $worker == all || $worker == "$i" ]] || continue
  export HOME=$WORKERS/$i; mkdir -p "$HOME"; cd "$HOME"
  if [[ $4 == scp ]]; then cp "$5" "$HOME/${6#*:}"; else bash -c "$script" || exit; fi
done
"""
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *cacenet_jax.main*) echo "run: $*"; pwd; exec -a cacenet_jax.main sleep 1000 ;;
  "-m venv venv.new") mkdir -p venv.new/bin; cp "$0" venv.new/bin/python ;;
esac
"""


def test_tpu_pod_makes_an_environment_starts_follows_and_stops(tmp_path):
    """With a gcloud that runs on this machine what it would run on the workers."""
    for name, text in (("gcloud", GCLOUD), ("python3.11", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKERS": str(tmp_path / "workers")}
    words = ("--config=configs/market1501.py", "--workdir=/mnt/a b")

    def pod(action, *more):
        return launch("tpu_pod.sh", action, *POD, *more, env=env)

    assert "run create-env first" in pod("start", "--", *words).stderr
    assert "no run on" in pod("stop").stdout
    done = pod("create-env")
    assert done.returncode == 0, done.stderr
    homes = [tmp_path / "workers" / str(i) / "cacenet_jax_run" for i in (0, 1)]
    for home in homes:
        (home / "run.pid").write_text(str(os.getpid()))  # of a run long ago; another process has its number by now
        (home / "run.log").write_text("run: an earlier one\n")
        (home / "code/old.py").touch()
        (home / "code/data/prepared").mkdir(parents=True)
    assert "no run on" in pod("stop").stdout
    assert pod("create-env").returncode == 0
    assert not any((home / "code/old.py").exists() for home in homes)
    assert all((home / "code/data/prepared").is_dir() for home in homes)
    assert {path.name for path in homes[0].iterdir()} == {"code", "code.tar.gz", "venv", "run.log"}
    assert all((home / "code/cacenet_jax/main.py").is_file() for home in homes)
    try:
        done = pod("start", "--", *words)
        assert done.returncode == 0, done.stderr
        pids = [int((home / "run.pid").read_text()) for home in homes]
        deadline = time.monotonic() + PATIENCE
        while not all((home / "run.log").exists() and "code" in (home / "run.log").read_text() for home in homes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (
            "-m cacenet_jax.main --distributed --config=configs/market1501.py --workdir=/mnt/a b"
            in (homes[1] / "run.log").read_text()
        )
        for again in (pod("start", "--", *words), pod("create-env")):
            assert again.returncode == 2 and "found a run on" in again.stderr
        assert (homes[0] / "run.log").read_text().startswith("run: an earlier one\n")
        follow = subprocess.Popen(
            ["bash", str(LAUNCH / "tpu_pod.sh"), "follow", *POD, "--worker", "1"], env={**os.environ, **env},
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        lines = iter(follow.stdout.readline, "")
        assert any(line.startswith("run: -m") for line in lines)
        os.killpg(follow.pid, signal.SIGKILL)
        follow.communicate()
    finally:
        done = pod("stop")
    assert done.stdout.count("\nstopped on") == 2
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in pids)
    assert "no run on" in pod("stop").stdout


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
