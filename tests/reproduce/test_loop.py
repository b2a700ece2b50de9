"""The loop without training: what is trained in which order, what is skipped, and what an error or a kill leaves."""

import json
import shutil
from pathlib import Path

import pytest

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.reproduce import loop, sweep
from cacenet_jax.reproduce.runs import DataState
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.fingerprint import SCORED_BY
from cacenet_jax.run.stopping import StoppedError

FILE = str(Path(__file__).parents[2] / "configs/synthetic_ablation.py")
TABLE_1 = ["full", "individual", "clues", "individual_gcn", "normal"]
DATA = DataState({"images": 1, "identities": 1, "sha256": "a"}, "scored")
RANKING = {"mAP": 0.4, "rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "mINP": 0.1}


def config():
    values = paper()
    values.data.name = "synthetic_pedestrians"
    return values


class Trainer:
    """In place of train.train: writes what a run leaves, or does what `on` says for a run."""

    def __init__(self):
        self.ran = []
        self.on = {}

    def __call__(self, config, folder):
        run, seed = folder.parent.name, config.seed
        assert folder.name == f"seed_{seed}"
        self.ran.append((run, seed))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        if error := self.on.get((run, seed)):
            raise error
        names = ("individual", "conditional", "mixed") if config.model.pair_stage != "none" else ("individual",)
        found = {name: RANKING for name in names} | {
            "mix": config.eval.mix, "top_k": config.eval.top_k, "num_query": 10, "num_gallery": 200, "num_valid": 10,
            "step": config.epochs, "seconds": 1.0, "data": config.data.name, "options": config.data.options.to_dict(),
        }  # fmt: skip
        settings = {name: config.eval[name] for name in SCORED_BY}
        found["fingerprint"] = {"data": DATA.scored, "network": "n", "settings": settings}
        (folder / "data.json").write_text(json.dumps(DATA.train))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": config.epochs, "loss": 1.0}) + "\n")
        (folder / "results.json").write_text(json.dumps(found))


@pytest.fixture
def trainer(monkeypatch):
    found = Trainer()
    look = lambda config: DataState(None, None, "nothing here") if config.data.root == "nowhere" else DATA
    monkeypatch.setattr("cacenet_jax.reproduce.runs.data_state", look)
    monkeypatch.setattr("cacenet_jax.reproduce.runs.train.train", found)
    monkeypatch.setattr(
        "cacenet_jax.reproduce.runs._forget_programs", lambda: None
    )  # there are none, and it takes a while
    for draw in ("plot_table", "plot_sweep"):  # test_plot.py draws
        monkeypatch.setattr(f"cacenet_jax.reproduce.plot.{draw}", lambda *given: given[-1].write_bytes(b""))
    return found


def run(workdir, *tables, seeds=(0, 1), of=None, overrides=None):
    loop.reproduce(of or config(), workdir, tables, seeds, FILE, overrides)


def counts(workdir, number):
    """The seeds column of a table."""
    rows = (workdir / f"table_{number}.md").read_text().splitlines()
    return [row.split("|")[3].strip() for row in rows if " of " in row and row.startswith("|")]


def test_rows_are_trained_once_for_each_seed_and_skipped_when_they_are_done(tmp_path, trainer):
    run(tmp_path, "1", "3")
    rows = [*TABLE_1, "alpha_1.0", "alpha_0.95", "alpha_0.8", "alpha_0.7", "alpha_0.6"]
    assert trainer.ran == [(row, seed) for seed in (0, 1) for row in rows]
    assert counts(tmp_path, "1") == ["2 of 2"] * 5 and counts(tmp_path, "3") == ["2 of 2"] * 6
    assert {path.suffix for path in tmp_path.glob("table_1.*")} == {".md", ".csv", ".png"}
    assert len((tmp_path / "table_3.csv").read_text().splitlines()) == 13
    trainer.ran.clear()
    run(tmp_path, "1", "2", seeds=(0, 1, 2))
    new = [("full", 2), ("individual", 2), ("clues", 2), ("individual_gcn", 2), ("normal", 2)]
    strategies = ("part", "top1", "topk", "full_connect", "semantic")
    assert sorted(trainer.ran) == sorted(new + [(row, seed) for seed in (0, 1, 2) for row in strategies])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StoppedError("terminated", 143)])
def test_a_stopped_study_has_its_table_and_trains_what_is_missing(tmp_path, trainer, stop):
    trainer.on["clues", 1] = stop
    with pytest.raises(type(stop)):
        run(tmp_path, "1")
    assert trainer.ran == [(row, 0) for row in TABLE_1] + [(row, 1) for row in TABLE_1[:3]]
    assert counts(tmp_path, "1") == ["2 of 2", "1 of 2", "1 of 2", "1 of 2", "2 of 2"]
    trainer.on.clear(), trainer.ran.clear()
    run(tmp_path, "1")
    assert trainer.ran == [(row, 1) for row in TABLE_1[2:]]
    assert counts(tmp_path, "1") == ["2 of 2"] * 5
    seconds = json.loads((tmp_path / "runs/clues/seed_1/reproduce.json").read_text())["seconds"]
    assert seconds is None  # of a part of it
    assert json.loads((tmp_path / "runs/full/seed_1/reproduce.json").read_text())["seconds"] >= 0


def test_an_error_in_a_row_does_not_lose_the_others(tmp_path, trainer):
    trainer.on["individual", 0] = UserError("step 3: found loss=nan; lower it")
    with pytest.raises(UserError, match=r"1 of 10 runs failed.*individual, seed 0: step 3: found loss=nan; lower it$"):
        run(tmp_path, "1")
    assert len(trainer.ran) == 10
    assert counts(tmp_path, "1") == ["1 of 2", "2 of 2", "2 of 2", "2 of 2", "2 of 2"]
    assert (
        "- Individual feature embedding: seed 0 failed: step 3: found loss=nan" in (tmp_path / "table_1.md").read_text()
    )
    trainer.on.clear(), trainer.ran.clear()
    run(tmp_path, "1")
    assert trainer.ran == [("individual", 0)]
    assert "failed" not in (tmp_path / "table_1.md").read_text()


def test_a_mistake_in_the_program_is_not_hidden(tmp_path, trainer):
    trainer.on["full", 0] = TypeError("a mistake")
    with pytest.raises(TypeError):
        run(tmp_path, "1")


def test_a_run_of_another_config_is_told_before_anything_is_written(tmp_path, trainer):
    run(tmp_path, "1", seeds=(0,))
    shutil.rmtree(tmp_path / "runs/full")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trainer.ran.clear()
    other = config()
    other.epochs = 40
    with pytest.raises(
        UserError, match=r"individual/seed_0/config.json: found a run of another config \(epochs: 80 -> 40\)"
    ):
        run(tmp_path, "1", seeds=(0,), of=other)
    assert trainer.ran == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_settings_of_the_evaluation_score_every_run_again(tmp_path, trainer):
    run(tmp_path, "1", seeds=(0,))
    trainer.ran.clear()
    other = config()
    other.eval.mix = 0.3
    run(tmp_path, "1", seeds=(0,), of=other)
    assert trainer.ran == [(row, 0) for row in TABLE_1]
    assert "pairs weigh 0.3" in (tmp_path / "table_1.md").read_text()


def test_data_sets_that_are_absent_are_named_and_the_rest_goes_on(tmp_path, trainer, monkeypatch):
    def look(config):
        available = config.data.name in ("synthetic_pedestrians", "msmt17")
        return DATA if available else DataState(None, None, f"{config.data.root}: nothing here")

    monkeypatch.setattr("cacenet_jax.reproduce.runs.data_state", look)
    run(tmp_path, "4", "1", "5", seeds=(0, 1), overrides={"data.root": "there"})
    assert trainer.ran == [(row, seed) for seed in (0, 1) for row in TABLE_1] + [("msmt17", 0), ("msmt17", 1)]
    text = (tmp_path / "table_4.md").read_text()
    assert counts(tmp_path, "4") == ["0 of 2", "0 of 2", "2 of 2"]
    assert "- Market-1501: data absent: there: nothing here" in text and "- DukeMTMC-reID: data absent" in text
    assert "- Occluded-Duke: data absent" in (tmp_path / "table_5.md").read_text()


def test_where_no_row_has_data_nothing_is_written(tmp_path, trainer):
    with pytest.raises(UserError, match="nothing here"):
        run(tmp_path / "new", "4", "5", overrides={"data.root": "nowhere"})
    assert not (tmp_path / "new").exists() and trainer.ran == []


def test_the_sweep_follows_the_full_model_and_is_made_once(tmp_path, trainer, monkeypatch):
    made = []

    def made_up(settings, folder):
        made.append(settings.seed)
        costs = {"seconds": 3.0, "describe": 2.0, "rescore": 0.5, "rank": 0.5}
        rows = [{"top_k": k, "pairs": k, "individual": RANKING, **costs} for k in (0, 10)]
        (folder / sweep.FILE).write_text(
            json.dumps({"of": sweep._identity(folder / "results.json", settings.evaluation), "rows": rows})
        )
        return rows

    monkeypatch.setattr("cacenet_jax.reproduce.loop.load", lambda config, folder: experiment.read(config))
    monkeypatch.setattr("cacenet_jax.reproduce.sweep.sweep", made_up)
    run(tmp_path, "topk")
    assert trainer.ran == [("full", 0), ("full", 1)] and made == [0, 1]
    assert len((tmp_path / "table_topk.csv").read_text().splitlines()) == 5
    run(tmp_path, "topk", "1")
    assert made == [0, 1] and ("full", 0) not in trainer.ran[2:]
    other = config()
    other.eval.flip = False
    run(tmp_path, "topk", of=other)
    assert made == [0, 1, 0, 1]  # scored in another way


def test_finished_runs_print_no_table_when_their_data_are_gone_or_have_changed(tmp_path, trainer, monkeypatch):
    run(tmp_path, "1", seeds=(0,))
    trainer.ran.clear()
    gone = config()
    gone.data.root = "nowhere"
    with pytest.raises(UserError, match="nothing here"):
        run(tmp_path, "1", seeds=(0,), of=gone)
    assert trainer.ran == []
    changed = DATA._replace(scored="others")
    monkeypatch.setattr("cacenet_jax.reproduce.runs.data_state", lambda config: changed)
    trainer.on.update({(row, 0): UserError("found a run on other data") for row in TABLE_1})
    with pytest.raises(UserError, match="5 of 5 runs failed"):
        run(tmp_path, "1", seeds=(0,))
    assert counts(tmp_path, "1") == ["0 of 1"] * 5 and "44" not in (tmp_path / "table_1.csv").read_text()
