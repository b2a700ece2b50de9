"""A run compiles its step once, and later runs load it from the persistent cache."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command import ROOT, TINY

from cacenet_jax import train
from cacenet_jax.distributed.device_map import DeviceMap
from cacenet_jax.run import compilation
from cacenet_jax.run.metric_writer import MetricWriter


def tiny():
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("mode", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_a_run_compiles_nothing_after_its_first_steps_checkpoint_and_validation(
    mode, tmp_path, tmp_path_factory, monkeypatch
):
    in_step, after_validation, caught = [], [], []

    def mapped(self, step, original=DeviceMap.map):
        compiled = original(self, step)

        def counted(state, batch):
            before = compilation.num_compiled()
            result = compiled(state, batch)
            in_step.append(compilation.num_compiled() - before)
            return result

        return counted

    class Writer(MetricWriter):
        def write(self, step, metrics):
            super().write(step, metrics)
            if any(name.startswith("val/") for name in metrics):
                after_validation.append(compilation.num_compiled())

    monkeypatch.setattr(DeviceMap, "map", mapped)
    monkeypatch.setattr(train, "MetricWriter", Writer)
    monkeypatch.setattr(logging, "warning", lambda *words: caught.append(words[0] % words[1:]))
    config = tiny()
    config.parallel, config.devices = mode, 2
    config.data.dir = str(tmp_path_factory.getbasetemp() / "prepared")
    config.data.val_share, config.eval_every, config.epochs = 0.25, 1, 3
    config.checkpoint_every = 2  # the first save compiles the copies of arrays to the host
    train.train(config, tmp_path / "run")
    assert len(in_step) == 12 and sum(in_step[:2]) >= 1  # 4 steps an epoch
    assert in_step[2:] == [0] * 10
    assert len(after_validation) == 3  # steps, checkpoints and a validation lie between them
    assert after_validation == after_validation[:1] * 3
    assert not [text for text in caught if "compiled again" in text]


def test_recompilation_is_logged_with_the_shapes(caplog):
    step = compilation.warn_on_recompilation(jax.jit(lambda state, rows: state + rows.sum()))
    for _ in range(4):
        step(0.0, np.ones((4, 2), np.float32))
    assert not caplog.records
    assert step(0.0, np.ones((3, 2), np.float32)) == 6
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "compiled again at call 5" in record.getMessage() and "float32[3, 2]" in record.getMessage()


def test_the_first_two_calls_may_compile(caplog):
    step = compilation.warn_on_recompilation(jax.jit(lambda state, rows: state + rows.sum()))
    step(0.0, np.ones(7, np.float32))
    step(np.zeros(7, np.float32), np.ones(7, np.float32))
    assert not caplog.records


PROGRAM = """
import jax
from cacenet_jax.run import compilation
compilation.enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.jit(lambda x: x * 3 + 1)(2.0)
print(jax.config.jax_compilation_cache_dir)
"""


def folder_of(**env) -> str:
    """Return the cache folder of a new process that has compiled something."""
    clean = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**clean, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_cache_is_the_folder_the_user_names_or_in_the_users_cache(tmp_path):
    cache = Path(folder_of(XDG_CACHE_HOME=str(tmp_path)))
    assert cache.parent == tmp_path / "cacenet_jax/xla" and any(cache.iterdir())
    chosen = tmp_path / "chosen"
    assert folder_of(XDG_CACHE_HOME=str(tmp_path / "other"), JAX_COMPILATION_CACHE_DIR=str(chosen)) == str(chosen)
    assert any(chosen.iterdir()) and not (tmp_path / "other").exists()
    (tmp_path / "file").write_text("")
    assert folder_of(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"  # no cache, and no error


def test_processors_that_differ_do_not_share_programs(monkeypatch):
    one = compilation.default_cache_dir()
    monkeypatch.setattr(compilation, "_cpu_features", lambda: "flags: another")
    assert compilation.default_cache_dir().parent == one.parent and compilation.default_cache_dir() != one
