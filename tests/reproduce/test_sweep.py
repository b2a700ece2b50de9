"""The sweep over K: what the evaluator says for each K, and what it cost."""

import dataclasses
import json

import pytest
from tiny_scoring import NUM_GALLERY, NUM_QUERY, score_state, split, state, tiny_config

from cacenet_jax import experiment
from cacenet_jax.reproduce import sweep
from cacenet_jax.train import Trained


def test_which_k():
    assert sweep.top_ks(1600) == [0, 10, 20, 50, 100, 200]
    assert sweep.top_ks(1000) == [0, 10, 20, 50, 100, 200, 1000]
    assert sweep.top_ks(100) == [0, 10, 20, 50, 100]
    assert sweep.top_ks(16) == [0, 10, 16]


@pytest.fixture
def folder(tmp_path):
    """A work dir of a finished run."""
    (tmp_path / "results.json").write_text(json.dumps({"fingerprint": {"data": "d", "network": "n"}}))
    return tmp_path


@pytest.mark.slow
def test_each_k_is_what_the_evaluator_says(folder, monkeypatch):
    net, values = state()
    monkeypatch.setattr(sweep, "open_split", lambda prepared, name: {"query": NUM_QUERY, "gallery": NUM_GALLERY}[name])
    monkeypatch.setattr(sweep, "all_records", lambda count: split(count, {NUM_QUERY: 1, NUM_GALLERY: 2}[count]))
    settings = experiment.read(tiny_config(folder))
    rows = sweep.sweep(Trained(settings, net, 0, values, None), folder)
    assert [row["top_k"] for row in rows] == [0, 10, 20, 50] == [row["pairs"] for row in rows]
    for row in rows:
        names = ["individual"] if row["top_k"] == 0 else ["individual", "conditional", "mixed"]
        assert [name for name in ("individual", "conditional", "mixed") if name in row] == names
        expected = score_state(tiny_config(folder, top_k=max(row["top_k"], 1)), net, values)
        assert all(row[name] == expected[name] for name in names)
        assert row["seconds"] == pytest.approx(row["describe"] + row["rescore"] + row["rank"])
        assert (row["rescore"] > 0) == (row["top_k"] > 0) and row["describe"] > 0
    assert rows[1]["mixed"] != rows[3]["mixed"]  # K matters here
    assert sweep.done(folder, settings.evaluation) == rows


@pytest.mark.parametrize(
    ("field", "value", "kept"), [("top_k", 5, True), ("mix", 0.3, False), ("camera_filter", False, False)]
)
def test_a_sweep_that_was_made_otherwise_is_made_again(folder, field, value, kept):
    evaluation = experiment.read(tiny_config(folder)).evaluation
    identity = sweep._identity(folder / "results.json", evaluation)
    assert sweep.done(folder, evaluation) is None
    (folder / sweep.FILE).write_text(json.dumps({"of": identity, "rows": [{"top_k": 0}]}))
    assert (sweep.done(folder, dataclasses.replace(evaluation, **{field: value})) is not None) == kept
    (folder / "results.json").write_text(json.dumps({"fingerprint": {"data": "d", "network": "another"}}))
    assert sweep.done(folder, evaluation) is None  # of another network
