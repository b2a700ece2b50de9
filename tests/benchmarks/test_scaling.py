"""The table of devices: losses agree, and the check fails where they do not."""

import json

import pytest

from benchmarks import scaling

OPTIONS = ["--backbone=resnet_tiny", "--batch=8", "--height=32", "--width=16", "--embed-dim=8", "--identities=8"]


@pytest.mark.slow
def test_two_devices_have_the_losses_of_one(one_block, tmp_path, capsys):
    options = ["--counts", "1", "2", "--mode=pmap", "--no-weak", "--repeats=1", "--check", f"--out={tmp_path}"]
    assert scaling.main([*OPTIONS, *options]) == 0
    assert "SHARE ITS CORES" in capsys.readouterr().out
    found = json.loads((tmp_path / "scaling_float32.json").read_text())
    assert found["difference"] < 1e-5
    assert [(row["scaling"], row["devices"]) for row in found["scaling"]] == [("strong pmap", 1), ("strong pmap", 2)]


@pytest.mark.parametrize(("apart", "code"), [(1e-7, 0), (1e-3, 1), (float("nan"), 1)])
def test_losses_that_differ_fail(apart, code, monkeypatch, capsys):
    def mapped_step(size, count, how):
        away = apart if (how, count) == ("shard_map", 4) else 0
        return (lambda: None), {"loss of step 1": 2.0 + 2.0 * away, "param_norm": 1.0}

    monkeypatch.setattr(scaling, "mapped_step", mapped_step)
    assert scaling.main([*OPTIONS, "--repeats=1", "--check"]) == code
    assert ("MISSED" in capsys.readouterr().out) == bool(code)


def test_weak_scaling_gives_every_device_a_batch(monkeypatch, capsys):
    asked = []
    mapped_step = lambda size, count, how: (
        asked.append((size.batch, count, how)),
        (lambda: None, {"loss of step 1": 1.0}),
    )[1]
    monkeypatch.setattr(scaling, "mapped_step", mapped_step)
    scaling.main([*OPTIONS, "--repeats=1", "--counts", "1", "4"])
    assert asked == [(8, 1, "pmap"), (8, 4, "pmap"), (32, 4, "pmap"), (8, 1, "shard_map"), (8, 4, "shard_map")]
    assert "weak pmap" in capsys.readouterr().out


@pytest.mark.parametrize("counts", [["2"], ["1", "3"], ["1", "16"]])
def test_impossible_counts_are_said(counts):
    with pytest.raises(SystemExit, match="expected 1 first, divisors of 8"):
        scaling.main([*OPTIONS, "--counts", *counts])
