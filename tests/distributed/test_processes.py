"""Several processes as one run: equal numbers, one set of files, shared reading, and a common end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command import PATIENCE, ROOT, TINY, Command, free_address

from cacenet_jax.distributed import processes
from cacenet_jax.errors import UserError
from cacenet_jax.run import checkpoints, workdir
from cacenet_jax.run.command_line import check_distributed

TRAIN = (f"--config={TINY}", "--config.data.dir=prepared", "--config.data.val_share=0.25", "--config.eval_every=1",
         "--config.epochs=3", "--config.checkpoint_every=1")  # fmt: skip
STEPS = 12  # 3 epochs of floor(36 / 8) steps


def errors(done) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


# -- A training run in two processes -----------------------------------------------------------------------------------


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def assert_same_losses(actual: list[dict], expected: list[dict]) -> None:
    have, want = ({row["step"]: row["loss"] for row in part if "loss" in row} for part in (actual, expected))
    assert list(have) == list(want) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(have.values()), list(want.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Folder of a run in one process and of the same run in two, which record the records they read."""
    command = Command(tmp_path_factory.mktemp("runs"), request.config.cache.mkdir("xla"))
    done = command(*TRAIN, "--workdir=one")
    assert done.returncode == 0, done.stderr
    spy = ROOT / "tests/read_spy.py"
    for process in command.pair(*TRAIN, "--workdir=two", program=(str(spy),)):
        assert process.returncode == 0, process.stderr
        command_out = process.stdout
    assert "test split" not in command_out  # of process 1
    return command.folder


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_write_one_set_of_files(runs):
    one, two = runs / "one", runs / "two"
    assert_same_losses(rows(two), rows(one))
    names = [{path.name for path in folder.iterdir()} for folder in (one, two)]
    assert names[0] == names[1] == {
        ".lock", "config.json", "data.json", "metrics.jsonl", "tensorboard", "checkpoints", "results.json"
    }  # fmt: skip
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert [row["step"] for row in rows(two) if "val/individual_mAP" in row] == [4, 8, 12]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    for ranking in ("individual", "conditional", "mixed"):
        for metric, value in results[0][ranking].items():
            assert results[1][ranking][metric] == pytest.approx(value, abs=0.02), (ranking, metric)
    assert json.loads((one / "data.json").read_text()) == json.loads((two / "data.json").read_text())


def test_each_process_reads_only_its_share_of_the_batch(runs):
    """At each step the rows that the two processes decode make up the batch of one process, without overlap."""
    read = [json.loads((runs / f"read_{i}.json").read_text()) for i in range(2)]
    assert all(set(steps_read) == {str(step) for step in range(STEPS)} for steps_read in read)
    for step in map(str, range(STEPS)):
        first, second = read[0][step], read[1][step]
        assert len(first["decoded"]) == len(second["decoded"]) == 4
        assert first["decoded"] + second["decoded"] == first["batch"] == second["batch"]


@pytest.mark.slow
def test_a_killed_run_of_two_processes_resumes_in_one(runs, request):
    command = Command(runs, request.config.cache.mkdir("xla"))
    address = free_address()
    where = ("--distributed", f"--coordinator={address}", "--num_processes=2")
    words = (*TRAIN, "--workdir=killed")
    both = [command.start(*words, *where, f"--process_id={i}", stderr=os.open(os.devnull, os.O_WRONLY)) for i in (0, 1)]
    deadline = time.monotonic() + PATIENCE
    while max(steps(runs / "killed"), default=0) < 3:
        assert all(process.poll() is None for process in both) and time.monotonic() < deadline
        time.sleep(0.002)
    for process in both:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert max(steps(runs / "killed")) < STEPS
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "continuing killed from step" in done.stdout
    assert_same_losses(rows(runs / "killed"), rows(runs / "one"))
    done = command.pair(*TRAIN, "--workdir=one", "--mode=evaluate")  # two processes evaluate what one has trained
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr


# -- What goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (True, "10.0.0.1:8476", None, None, 300),
            "--coordinator=10.0.0.1:8476 without --num_processes and --process_id",
        ),
        ((True, None, 2, 0, 300), "--num_processes=2 --process_id=0 without --coordinator, expected all three"),
        ((True, "10.0.0.1", 2, 0, 300), "--coordinator: found '10.0.0.1', expected HOST:PORT"),
        ((True, "host:99999", 2, 0, 300), "--coordinator: found 'host:99999', expected HOST:PORT"),
        ((True, "host:8476", 2, 2, 300), "--process_id: found 2 of --num_processes=2, expected 0 to one less"),
        ((True, "host:8476", 0, 0, 300), "--process_id: found 0 of --num_processes=0"),
        ((False, "host:8476", 2, 0, 300), "given without --distributed, expected both; add --distributed"),
        ((True, None, None, None, 0), "--distributed_timeout: found 0, expected 1 second or more"),
    ],
)
def test_impossible_flags_are_refused(given, message):
    with pytest.raises(UserError) as caught:
        check_distributed(*given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_valid_flags_are_accepted():
    for given in ((False, None, None, None, 300), (True, None, None, None, 1), (True, "[::1]:8476", 2, 1, 300)):
        check_distributed(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ALONE = {  # exit code 1 where the same command may succeed later
    "nothing detected": ((), {}, 2, "no TPU, Slurm or Kubernetes cluster was detected"),
    "one process detected": ((), {**SLURM, "SLURM_NTASKS": "1"}, 2, "found 1 process, expected several"),
    "partial flags": (("--num_processes=2",), {}, 2, "--num_processes=2 without --coordinator and --process_id"),
    "no answer": (
        ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--distributed_timeout=1"), {}, 1,
        "no answer within 1 s from 127.0.0.1:9",
    ),
    "others missing": (
        ("--coordinator={address}", "--num_processes=2", "--process_id=0", "--distributed_timeout=1"), {}, 1,
        "or from another process, expected every process",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_a_run_that_cannot_be_joined_ends_with_one_line(command, case):
    """A process must never start a run of its own in place of joining one."""
    words, env, code, message = ALONE[case]
    words = [word.format(address=free_address()) for word in words]
    done = command(*TRAIN, "--workdir=run", "--distributed", *words, env=env)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1 and message in errors(done)[0], done.stderr
    assert not (command.folder / "run").exists()


def test_a_user_error_in_one_process_ends_both_with_its_line(command):
    (command.folder / "a_file").write_text("")
    done = command.pair(*TRAIN, "--workdir=run", second=("--config.data.dir=a_file/prepared",))
    assert [process.returncode for process in done] == [2, 2], done
    line = errors(done[1])[-1]
    assert "a_file/prepared" in line and "cannot be written" in line
    assert errors(done[0]) == [line.replace("error: ", "error: process 1 ended: ")]
    assert "Traceback" not in done[0].stderr + done[1].stderr
    assert not (command.folder / "run").exists()


def test_processes_with_different_configs_are_refused(command):
    done = command.pair(*TRAIN, "--workdir=run", first=("--config.loss.margin=0.3",))
    assert [process.returncode for process in done] == [2, 2], done
    assert all(len(process.stderr.splitlines()) == 1 for process in done), (
        done
    )  # no C++ stack from losing the coordinator
    assert "config.loss.margin=0.5 in process 1, expected 0.3 as in process 0" in errors(done[1])[0]


LOST = "error: process 0 lost the connection to another one"
ENDED = {
    "SIGKILL": (-signal.SIGKILL, 1, LOST),
    "SIGTERM": (143, 143, "terminated; the same command continues from step"),
    "SIGINT": (130, 130, "interrupted; the same command continues from step"),
}


# Ctrl-C of both processes is in tests/launch/test_local.py.
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_other_soon(runs, request, signal_name):
    """SIGTERM is what Slurm and Kubernetes send: both processes save the same step, past the last regular checkpoint."""
    code, others_code, message = ENDED[signal_name]
    command = Command(runs, request.config.cache.mkdir("xla"))
    where = ("--distributed", f"--coordinator={free_address()}", "--num_processes=2")
    regular = 10
    words = (*TRAIN, f"--workdir={signal_name}", "--config.epochs=5000", f"--config.checkpoint_every={regular}",
             "--config.eval_every=5000")  # fmt: skip
    first_log, second_log = runs / f"{signal_name}.log", runs / f"{signal_name}_1.log"
    first = command.start(*words, *where, "--process_id=0", stderr=os.open(first_log, os.O_WRONLY | os.O_CREAT))
    second = command.start(*words, *where, "--process_id=1", stderr=os.open(second_log, os.O_WRONLY | os.O_CREAT))
    deadline = time.monotonic() + PATIENCE
    while regular not in steps(runs / signal_name):
        assert first.poll() is None and second.poll() is None and time.monotonic() < deadline, first_log.read_text()
        time.sleep(0.01)
    os.killpg(second.pid, signal.Signals[signal_name])
    assert second.wait(timeout=PATIENCE) == code
    assert first.wait(timeout=PATIENCE) == others_code
    assert message in first_log.read_text()
    assert "Traceback" not in first_log.read_text()
    if signal_name != "SIGKILL":
        saved = int(first_log.read_text().split("continues from step ")[1])
        assert saved == max(steps(runs / signal_name)) > regular
    lines = second_log.read_text().splitlines()  # no C++ stack either
    assert len(lines) == (signal_name != "SIGKILL"), lines


def test_explicit_flags_disable_cluster_detection(monkeypatch):
    """In a Slurm shell JAX would otherwise choose the GPU of the shell's task."""
    given = {}

    def initialize(*words, **named):
        given.update(named)
        raise RuntimeError("enough")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for flags, expected in ((("host:1", 2, 0), "deactivate"), ((None, None, None), None)):
        with pytest.raises(processes.NotJoinedError, match="enough"):
            processes.start(*flags)
        assert given["cluster_detection_method"] == expected


def test_processes_agree_on_the_writers_step_and_wait_for_it(monkeypatch, tmp_path):
    """A network file system shows a process the newest checkpoint later than its writer."""
    shown = iter([[3], [3], [3, 5]])
    reader = checkpoints.Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints, "broadcast_from_writer", lambda name, value: 5.0)
    monkeypatch.setattr(reader, "_folders", lambda: next(shown))
    assert reader.agree_on_step(3) == 5 and next(shown, None) is None
    monkeypatch.setattr(reader, "_folders", lambda: [3])
    monkeypatch.setattr(checkpoints, "SHARED_S", 0.1)
    with pytest.raises(UserError, match=r"found no step 5 in process 0, expected what process 0 sees.*all hosts share"):
        reader.agree_on_step(3)
    reader.close()


def test_a_workdir_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    """Even if an earlier run on this machine has left its files there."""
    workdir.claim_workdir(tmp_path / "run", {}, {})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "data.json"}
    monkeypatch.setattr(workdir, "is_writer", lambda: False)
    monkeypatch.setattr(workdir, "SHARED_S", 0.1)
    with pytest.raises(UserError, match=r"--workdir=.*run: found nothing of what process 0 writes.*all hosts share"):
        workdir.claim_workdir(tmp_path / "run", {}, {})


def test_processes_that_fail_alike_print_one_message(monkeypatch):
    class Client:
        def blocking_key_value_get(self, key, milliseconds):
            assert key == "cacenet_jax/failed/0" and milliseconds == 1000
            return "2 a mistake"

    for name in ("_joined", "_ending"):
        monkeypatch.setattr(processes, name, threading.Event())
    assert not processes.reported_by_writer(2, "a mistake")  # before the processes are joined
    processes._joined.set()
    monkeypatch.setattr(processes, "_client", Client)
    monkeypatch.setattr(processes, "is_writer", lambda: False)
    assert processes.reported_by_writer(2, "a mistake") and processes._ending.is_set()
    assert not processes.reported_by_writer(2, "another one")
    monkeypatch.setattr(processes, "is_writer", lambda: True)
    assert not processes.reported_by_writer(2, "a mistake")
    monkeypatch.setattr(processes, "is_writer", lambda: False)
    monkeypatch.setattr(processes, "_client", lambda: None)
    assert not processes.reported_by_writer(2, "a mistake")  # no coordination service


def test_a_single_process_never_waits(monkeypatch):
    processes.barrier("alone")
    processes.check_same("alone", {"a": {"b": 1}})
    assert processes.exchange("alone", "word") == ["word"] and processes.broadcast_from_writer("alone", 0.1) == 0.1
    assert processes.is_writer()
    with processes.writer_first("alone"):
        pass
    with pytest.raises(SystemExit) as caught:
        processes.shut_down(2, "a mistake")
    assert caught.value.code == 2


# -- The main job ------------------------------------------------------------------------------------------------------


def first_losses(command: Command, words: list[str], workdir: Path, count: int) -> np.ndarray:
    """Return the losses of a run's first steps, then interrupt the run."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}
    env.pop("JAX_NUM_CPU_DEVICES", None)
    process = subprocess.Popen(words, cwd=command.folder, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 900
    while not (workdir / "metrics.jsonl").exists() or len(rows(workdir)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=PATIENCE)
    return np.array([row["loss"] for row in rows(workdir)[:count]])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_processes_train_the_main_job_as_one_does(command):
    """launch/local.sh with two processes of one device: the first 20 losses, relative to 1e-4.

    Measured: about 1e-5 (1.2e-4 of losses of 12). One process differs as much between one core and two, since AdamW's first
    steps amplify float32 rounding (docs/performance.md).
    """
    job = [f"--config={ROOT / 'configs/synthetic.py'}", "--config.log_every=1", "--config.data.dir=prepared"]
    alone = [*command.line(*job), "--workdir=one"]
    two = ["bash", str(ROOT / "launch/local.sh"), "--processes", "2", *job, "--workdir=two"]
    expected = first_losses(command, alone, command.folder / "one", 20)
    losses = first_losses(command, two, command.folder / "two", 20)
    difference = np.abs(losses - expected)
    print(f"largest difference of 20 losses: {difference.max():.2e}, relative {(difference / expected).max():.2e}")
    assert (difference / expected).max() < 1e-4, (losses, expected)
