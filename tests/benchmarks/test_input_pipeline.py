"""The benchmark of the input pipeline reads real records, and can fail."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import input_pipeline, problem

OPTIONS = [
    "--data=synthetic",
    "--height=32",
    "--width=16",
    "--steps=2",
    "--repeats=1",
    "--workers",
    "--threads",
    "1",
    "2",
]


@pytest.mark.slow
@pytest.mark.parametrize(("need", "code"), [("1", 0), ("1e12", 1)])
def test_rates_are_measured_and_a_missed_need_fails(need, code, tmp_path, capsys):
    assert input_pipeline.main([*OPTIONS, "--check", f"--need={need}", f"--out={tmp_path}"]) == code
    found = json.loads((tmp_path / "input_pipeline.json").read_text())
    assert [row["threads each"] for row in found["rates"]] == [1, 2]
    assert found["best"] > 0 and found["data"] == "synthetic"
    assert ("MISSED" in capsys.readouterr().out) == bool(code)


@pytest.mark.slow
def test_the_loop_is_set_against_the_step(tmp_path, monkeypatch, capsys):
    def step_of(net):
        def step(state, batch):
            return state + 1, {"loss": jnp.mean(batch.images.astype(jnp.float32))}

        return step

    monkeypatch.setattr(problem, "step_of", step_of)
    monkeypatch.setattr(problem, "state_of", lambda size: np.zeros(()))
    options = ["--step", "--loop-steps=3", "--backbone=resnet_tiny", "--threads", "2", f"--out={tmp_path}"]
    assert input_pipeline.main([*OPTIONS, *options]) == 0
    found = json.loads((tmp_path / "input_pipeline.json").read_text())
    assert [row["trainer"] for row in found["loop"]] == ["step, resident batch", "loop, fresh batches"]
    assert found["loop_over_step"] > 0
