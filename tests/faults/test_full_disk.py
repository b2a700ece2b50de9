"""Full and read-only disks: one line that names the folder, nothing half-written that counts, and space makes it go on."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import TINY, Command, free_address
from faults.full_disk import file_size_limit, small_disk
from released import golden_config, golden_network, state_dict
from safetensors.numpy import save_file

from cacenet_jax import experiment
from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError, WriteError, refusal, writing
from cacenet_jax.export.folder import MANIFEST, place
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.import_checkpoint import import_checkpoint
from cacenet_jax.run.metric_writer import MetricWriter
from cacenet_jax.run.workdir import check_writable, write_file
from cacenet_jax.train_step import TrainState

SHARDING = replicated_sharding(global_mesh(1))
PEOPLE = {"num_train_ids": 8, "num_test_ids": 4, "images_per_id": 6, "height": 32, "width": 16, "supersample": 1}
FULL, LIMITED = "no space left on device", "file too large"
TRAIN = (f"--config={TINY}", "--config.checkpoint_every=1", "--config.epochs=2", "--config.data.dir=../prepared",
         "--workdir=run")  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def state_at(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"individual_head": {"classifier": {"kernel": jnp.asarray(rng.normal(size=(50, 3000)), jnp.float32)}}}
    return jax.device_put(TrainState(jnp.int32(step), params, {}, (jnp.zeros((), jnp.int32),)), SHARDING)


def prepare_in(folder: Path):
    return prepare(
        "synthetic_pedestrians", root=None, data_dir=str(folder), options=PEOPLE, progress=False,
    )  # fmt: skip


def check_preparing(folder: Path, reason: str) -> None:
    home = folder / "synthetic_pedestrians"
    with pytest.raises(WriteError) as caught:
        prepare_in(folder)
    line = str(caught.value)
    assert line.startswith(f"{home}: files cannot be written ({reason}), expected") and "\n" not in line
    assert [path.name for path in home.iterdir()] == [".lock"]


def check_saving(folder: Path, refuse, reason: str, capfd) -> None:
    """The first step is saved with space, the second without, and then with space again."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state_at(1))
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    with refuse(), pytest.raises(WriteError) as caught:
        checkpoints.save(2, state_at(2))
        checkpoints.close()
    checkpoints.close(10.0)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'checkpoints'}: files cannot be written ({reason})") and "\n" not in line
    assert "step 1 is the newest complete checkpoint" in line
    assert "".join(capfd.readouterr()) == ""  # orbax logs each of its threads
    checkpoints = Checkpoints(folder)
    step, state = checkpoints.restore(state_at(0), SHARDING)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, state, state_at(1))
    checkpoints.save(2, state_at(2))
    checkpoints.close()
    assert Checkpoints(folder, create=False).restore(state_at(0), SHARDING)[0] == 2


def check_metrics(folder: Path, refuse, reason: str) -> None:
    """metrics.jsonl and the events of TensorBoard; lines that were cut off are dropped by the next run."""
    writer = MetricWriter(folder, 0)
    writer.write(1, {"loss": 1.0})
    with (
        refuse(),
        pytest.raises(WriteError, match=f"{folder}: files cannot be written \\({reason}\\)"),
        writing(folder),
    ):
        for step in range(2, 4000):
            writer.write(step, {"loss": 1.0})
    with refuse(), pytest.raises(OSError):  # what is buffered
        writer.close()
    MetricWriter(folder, 10).close()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))


# -- A small tmpfs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kib", [4, 440])  # in the first and in the last split
def test_preparing_on_a_full_disk(disk, kib):
    disk.leave(kib)
    check_preparing(disk.folder, FULL)
    disk.clear()
    assert len(open_split(prepare_in(disk.folder), "gallery")) == 16


@pytest.mark.parametrize("kib", [8, 100, 560])  # in the first files, in the array, in the last files
def test_saving_on_a_full_disk(disk, kib, capfd):
    class Refuse:
        def __enter__(self):
            disk.leave(kib)

        def __exit__(self, *_):
            disk.clear()

    check_saving(disk.folder, Refuse, FULL, capfd)


def test_metrics_on_a_full_disk(disk):
    class Refuse:
        def __enter__(self):
            disk.leave(0)

        def __exit__(self, *_):
            disk.clear()

    check_metrics(disk.folder, Refuse, FULL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A command line beside prepared data, and a finished run with a limit on nothing."""
    command = Command(tmp_path_factory.mktemp("runs") / "here", request.config.cache.mkdir("xla"))
    command.folder.mkdir()
    done = command(*TRAIN)
    assert done.returncode == 0, done.stderr
    return command


def error_of(done) -> str:
    """The only line of an error."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def checksums(workdir: Path, step: int) -> dict:
    return json.loads((workdir / f"checkpoints/{step}/_CHECKPOINT_METADATA").read_text())["custom_metadata"]["arrays"]


@pytest.mark.slow
def test_training_stops_on_a_full_disk_and_goes_on_with_space(trained):
    with small_disk(trained.folder.parent / "disk") as disk:
        command = Command(disk.folder, trained.cache)
        disk.leave(1500)
        line = error_of(command(*TRAIN))
        newest = max(Checkpoints(disk.folder / "run", create=False).steps())
        assert f"error: {disk.folder}/run/checkpoints: files cannot be written ({FULL})" in line
        assert f"step {newest} is the newest complete checkpoint" in line and newest < 12
        disk.clear()
        done = command(*TRAIN)
        assert done.returncode == 0 and f"continuing run from step {newest} of 12" in done.stdout, done.stderr
        assert checksums(disk.folder / "run", 12) == checksums(trained.folder / "run", 12)


MODES = {
    "evaluate": "",
    "export": "",
    "visualize": "",
    "train": "step 12 is the newest complete checkpoint",  # the finished run, which writes its results again
}
slow = [name if name in ("evaluate", "train") else pytest.param(name, marks=pytest.mark.slow) for name in MODES]


@pytest.mark.parametrize("mode", slow)
def test_other_modes_on_a_full_disk(trained, mode):
    with small_disk(trained.folder.parent / f"disk_{mode}") as disk:
        shutil.copytree(trained.folder / "run", disk.folder / "run")
        disk.leave(0)
        before = {path: path.read_bytes() for path in (disk.folder / "run").rglob("*.json")}
        line = error_of(Command(disk.folder, trained.cache)(*TRAIN, f"--mode={mode}"))
        assert f"error: run: files cannot be written ({FULL})" in line and MODES[mode] in line
        assert {path: path.read_bytes() for path in (disk.folder / "run").rglob("*.json")} == before
        assert not list((disk.folder / "run").glob("*/manifest.json")) + list((disk.folder / "run").glob("*/*.html"))


@pytest.mark.slow
def test_two_processes_end_together_on_a_full_disk(trained):
    with small_disk(trained.folder.parent / "disk_two") as disk:
        command = Command(disk.folder, trained.cache)
        disk.leave(1500)
        where = ("--distributed", f"--coordinator={free_address()}", "--num_processes=2")
        both = [command.line(*TRAIN, *where, f"--process_id={i}") for i in range(2)]
        done = command.together(*both, seconds=300)
        assert all(f"checkpoints: files cannot be written ({FULL})" in error_of(process) for process in done)


@pytest.mark.slow
def test_importing_on_a_full_disk(disk, tmp_path, monkeypatch):
    net = golden_network()
    monkeypatch.setattr(experiment.Network, "build", lambda network, num_identities: net)  # stages that no name has
    save_file({name: x.astype(np.float32) for name, x in state_dict().items()}, tmp_path / "net.safetensors")
    config = golden_config()
    config.pretrained, config.devices = str(tmp_path / "net.safetensors"), 1
    disk.leave(60)
    with pytest.raises(WriteError, match=f"checkpoints: files cannot be written .{FULL}.*no checkpoint is complete"):
        import_checkpoint(config, disk.folder / "run")
    disk.clear()
    import_checkpoint(config, disk.folder / "run")
    assert Checkpoints(disk.folder / "run", create=False).steps() == [1]


@pytest.mark.slow
def test_reproducing_on_a_full_disk_stops_at_the_first_run(trained):
    with small_disk(trained.folder.parent / "disk_reproduce") as disk:
        command = Command(disk.folder, trained.cache)
        words = (*TRAIN, "--mode=reproduce", "--table=1", "--seeds=1")
        disk.leave(700)
        assert f"({FULL})" in error_of(command(*words))
        assert len(list((disk.folder / "run/runs").iterdir())) == 1
        disk.clear()
        assert command(*words).returncode == 0


@pytest.mark.slow
def test_a_read_only_disk(trained):
    with small_disk(trained.folder.parent / "read_only") as disk:
        shutil.copytree(trained.folder / "run", disk.folder / "run")
        shutil.copytree(trained.folder.parent / "prepared", disk.folder / "prepared")
        disk.refuse_writing()
        command = Command(disk.folder, trained.cache)
        for mode in ("train", "evaluate"):
            line = error_of(command(*TRAIN, f"--mode={mode}"))
            assert line.startswith(
                f"error: --workdir=run: found a folder that cannot be written, {disk.folder}/run"
            ) or (line.startswith("error: --workdir=run: found a folder that cannot be written, run, expected"))
        assert len(open_split(prepare_in(disk.folder / "prepared"), "gallery")) == 16  # data are only read
        with pytest.raises(UserError, match=r"data directory .* cannot be written \(Read-only file system\)"):
            prepare_in(disk.folder)


# -- A limit on the size of files, where nothing can be mounted --------------------------------------------------------


def test_preparing_with_a_limit_on_files(tmp_path):
    with file_size_limit(8 << 10):
        check_preparing(tmp_path, LIMITED)
    assert len(open_split(prepare_in(tmp_path), "gallery")) == 16


@pytest.mark.parametrize("kib", [0, 64])
def test_saving_with_a_limit_on_files(tmp_path, kib, capfd):
    check_saving(tmp_path, lambda: file_size_limit(kib << 10), LIMITED, capfd)


def test_metrics_with_a_limit_on_files(tmp_path):
    check_metrics(tmp_path, lambda: file_size_limit(4 << 10), LIMITED)


def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path):
    write_file(tmp_path / "results.json", "old")
    with file_size_limit(100), pytest.raises(WriteError, match=LIMITED), writing(tmp_path):
        write_file(tmp_path / "results.json", "n" * 101)
    assert (tmp_path / "results.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_export_that_cannot_be_completed_keeps_the_old_one(tmp_path):
    scratch, folder = tmp_path / "scratch", tmp_path / "export"
    for number, path in enumerate((scratch, folder)):
        path.mkdir()
        (path / "check.npz").write_text(str(number))
    (folder / MANIFEST).write_text("old")
    with file_size_limit(100), pytest.raises(OSError):
        place(scratch, folder, ("check.npz",), {"files": "x" * 101}, ())
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"check.npz": "1", MANIFEST: "old"}


# -- Refusals that root does not meet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "files cannot be read or written (permission denied)"),
        (errno.EROFS, "files cannot be written (read-only file system)"),
        (errno.EDQUOT, "files cannot be written (disk quota exceeded)"),
        (errno.EIO, "files cannot be read or written (input/output error)"),
    ],
)
def test_every_refusal_names_folder_and_reason(tmp_path, monkeypatch, number, told):
    def refuse(self, content):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(WriteError) as caught, writing("elsewhere", lambda: "step 3 is kept"):
        write_file(tmp_path / "results.json", "new")
    assert str(caught.value).startswith(f"{tmp_path}: {told}, expected a folder with free space and write permission; ")
    assert "; step 3 is kept; correct that" in str(caught.value)


def test_other_errors_are_left_as_they_are():
    for error in (
        ConnectionResetError(errno.ECONNRESET, "reset"),
        FileNotFoundError(errno.ENOENT, "none"),
        KeyError(3),
    ):
        assert refusal(error) is None
        with pytest.raises(type(error)), writing("here"):
            raise error


def test_a_folder_without_write_permission_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"--workdir=.*run: found a folder that cannot be written, .*expected a folder"):
        check_writable(tmp_path / "run")
