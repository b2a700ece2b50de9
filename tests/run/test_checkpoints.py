"""Checkpoints: damage is detected, reported in one line and costs only the newest interval."""

import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.errors import UserError
from cacenet_jax.run.checkpoints import Checkpoints, DamagedError
from cacenet_jax.train_step import TrainState

SHARDING = replicated_sharding(global_mesh(1))


def state_at(step: int) -> TrainState:
    """A state that differs between steps, with a large array that has a file of its own."""
    rng = np.random.default_rng(step)
    params = {"individual_head": {"classifier": {"kernel": jnp.asarray(rng.normal(size=(50, 300)), jnp.float32)}}}
    statistics = {"norm": {"mean": jnp.asarray(rng.normal(size=5), jnp.float32)}}
    state = TrainState(jnp.int32(step), params, statistics, (jnp.zeros((), jnp.int32), {"mu": params}))
    return jax.device_put(state, SHARDING)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder)
    for step, score in ((1, 0.9), (2, None), (3, 0.5)):
        checkpoints.save(step, state_at(step), score)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "truncated": lambda step: largest(step).write_bytes(largest(step).read_bytes()[:1000]),
    "emptied": lambda step: largest(step).write_bytes(b""),
    "flipped bit": lambda step: flip(largest(step)),
    "file deleted": lambda step: largest(step).unlink(),
    "metadata deleted": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "metadata overwritten": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b"\xff\x00{"),
    "metadata of another form": lambda step: (step / "_CHECKPOINT_METADATA").write_text('{"custom_metadata": [1]}'),
    "array metadata deleted": lambda step: (step / "state/_METADATA").unlink(),
    "manifest deleted": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "manifest flipped": lambda step: flip(step / "state/manifest.ocdbt"),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "metrics overwritten": lambda step: (step / "metrics/metrics").write_text("zz"),
    "empty folder": empty,
}


def assert_state(state: TrainState, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_one_falls_back_to_the_one_before(folder, caplog, capfd, damage):
    DAMAGE[damage](folder / "checkpoints/3")
    step, state = Checkpoints(folder, create=False).restore(state_at(0), SHARDING)
    assert step == 2
    assert_state(state, 2)
    gc.collect()  # tasks of orbax that failed are collected at any time, and asyncio would log them
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "checkpoints/3: the checkpoint is damaged (" in warning and warning.endswith("; using step 2")
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("damage", ["flipped bit", "state deleted", "empty folder"])
def test_parameters_fall_back_too(folder, damage):
    DAMAGE[damage](folder / "checkpoints/3")
    step, params, statistics = Checkpoints(folder, create=False).restore_parameters(SHARDING)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, params, state_at(2).params)
    jax.tree.map(np.testing.assert_array_equal, statistics, state_at(2).batch_stats)


def test_nothing_intact_is_an_error_that_names_the_damage(folder):
    for step in (1, 2, 3):
        flip(largest(folder / f"checkpoints/{step}"))
    with pytest.raises(
        UserError, match=r"no intact checkpoint \(.*checkpoints/3.*checksum.*restore it from a copy"
    ) as error:
        Checkpoints(folder, create=False).restore(state_at(0), SHARDING)
    assert not isinstance(error.value, DamagedError) and "\n" not in str(error.value)


def test_training_puts_a_damaged_one_aside_and_saves_its_step_again(folder):
    flip(largest(folder / "checkpoints/3"))
    (folder / "checkpoints/1/metrics/metrics").write_text("zz")  # orbax would stop at it
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(state_at(0), SHARDING)[0] == 2
    checkpoints.save(3, state_at(3))
    checkpoints.close()
    assert sorted(path.name for path in (folder / "damaged_checkpoints").iterdir()) == ["1", "3"]
    assert Checkpoints(folder, create=False).restore(state_at(0), SHARDING)[0] == 3


def test_a_reader_changes_nothing(folder):
    flip(largest(folder / "checkpoints/3"))
    before = sorted(folder.rglob("*"))
    Checkpoints(folder, create=False).restore(state_at(0), SHARDING)
    assert sorted(folder.rglob("*")) == before


def test_the_best_is_preferred_and_a_damaged_best_is_not_used(folder):
    checkpoints = Checkpoints(folder, create=False)
    assert checkpoints.best_step() == 1
    assert checkpoints.restore(state_at(0), SHARDING, best=True)[0] == 1
    flip(largest(folder / "checkpoints/1"))
    assert Checkpoints(folder, create=False).restore(state_at(0), SHARDING, best=True)[0] == 3


def test_another_network_is_no_damage(folder):
    other = state_at(0).replace(batch_stats={"norm": {"mean": jnp.zeros(6)}})
    with pytest.raises(UserError, match=r"batch_stats/norm/mean: float32\[5\] there, float32\[6\] here") as error:
        Checkpoints(folder, create=False).restore(other, SHARDING)
    assert not isinstance(error.value, DamagedError)


def test_as_many_as_asked_for_are_kept_beside_the_best(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (4, 5, 6):
        checkpoints.save(step, state_at(step))
    checkpoints.close()
    assert Checkpoints(folder, create=False).steps() == [1, 5, 6]


def test_unfinished_saves_are_passed_over(folder):
    shutil.copytree(folder / "checkpoints/3", folder / "checkpoints/4.orbax-checkpoint-tmp-12")
    assert Checkpoints(folder, create=False).steps() == [1, 2, 3]


def test_a_save_that_cannot_be_written_names_the_folder_and_the_last_good_step(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    checkpoints._open()

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]")

    monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", full)
    message = (
        r"checkpoints: files cannot be written \(no space left on device\).*step 3 is the newest complete checkpoint"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.save(4, state_at(4))
    checkpoints.close()


def test_every_array_has_a_checksum(folder):
    record = json.loads((folder / "checkpoints/3/_CHECKPOINT_METADATA").read_text())["custom_metadata"]["arrays"]
    assert set(record) == {
        "step", "params/individual_head/classifier/kernel", "batch_stats/norm/mean", "opt_state/0",
        "opt_state/1/mu/individual_head/classifier/kernel",
    }  # fmt: skip
