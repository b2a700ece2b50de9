"""The benchmark of the pair stage: it runs, its checks hold where they should and fail where they should."""

import json

import jax.numpy as jnp
import numpy as np

from benchmarks import pair_stage
from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import laplacian_conv

TINY = ["--images=4", "--nodes=16", "--channels=32", "--embed=8", "--repeats=1", "--agree-images=2"]


def test_forms_are_compared_and_agree_in_float64(tmp_path, capsys):
    assert pair_stage.main([*TINY, f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "pair_stage.json").read_text())
    assert {row["form"] for row in found["forms"]} >= {"literal", "exact", "bare Gram"}
    assert all(row["ms"] > 0 for row in found["forms"])
    assert "difference in float64" in capsys.readouterr().out


def test_check_fails_where_a_bound_is_missed(monkeypatch, capsys):
    monkeypatch.setattr(pair_stage, "MIN_SPEED", 1e9)
    assert pair_stage.main([*TINY, "--check"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_memory_is_compiled_against_the_budget(monkeypatch):
    monkeypatch.setattr(pair_stage, "BATCHES", (8, 16))
    size = ["--nodes=16", "--channels=64", "--embed=8", "--pair-memory-mib=0.4", "--memory", "--check"]
    assert pair_stage.main(size) == 0
    at_once = lambda args, images, dtype: pair_stage.Plan(None, images, True, False, images)
    monkeypatch.setattr(pair_stage, "planned", at_once)
    assert pair_stage.main(size) == 1


def test_literal_form_is_that_of_the_equations(x64):
    args = pair_stage.parse(TINY)
    maps, intra, cross, theta = pair_stage.problem(args, 3, jnp.float64)
    expected = [
        [laplacian_conv(correspondence(u, v, intra, cross), u, v, theta)[0].mean(axis=0) for v in maps] for u in maps
    ]
    np.testing.assert_allclose(pair_stage.literal(maps, intra, cross, theta), expected, rtol=1e-11, atol=1e-13)
