"""Which runs a study has, and which of them are done."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.reproduce import runs
from cacenet_jax.reproduce.tables import TABLES, parse_tables
from cacenet_jax.reproduce.variants import ROWS
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.fingerprint import SCORED_BY

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = CONFIGS / "synthetic_ablation.py"
RESULTS = {
    "individual": {"mAP": 0.5, "rank1": 0.6}, "mix": 0.5, "top_k": 100, "num_query": 10, "num_gallery": 200, "step": 80,
}  # fmt: skip
DATA = runs.DataState({"images": 16, "identities": 4, "sha256": "a"}, "scored")  # an epoch of one step


def base():
    config = paper()
    config.data.name = "synthetic_pedestrians"
    return config


def plan(tables, config=None, overrides=None):
    return runs.make_plan(config or base(), parse_tables(tables), FILE, overrides)


def test_rows_that_are_one_config_are_one_run():
    found = plan("all")
    assert found.run_of["1", 4] == found.run_of["2", 6] == found.run_of["3", 2] == "full"
    assert found.run_of["1", 0] == found.run_of["2", 0] == "individual"
    of_rows = [run for run in found.configs if run in ROWS]
    assert of_rows[0] == "full" and len(of_rows) == 15
    assert [run for run in found.configs if run not in ROWS] == ["market1501", "dukemtmc", "msmt17", "occluded_duke"]
    assert len({json.dumps(to_dict(config), sort_keys=True) for config in found.configs.values()}) == 19


def test_the_name_of_a_run_does_not_depend_on_the_tables_that_are_asked_for():
    whole = plan("all")
    for number in TABLES:
        some = plan(number)
        assert all(whole.run_of[key] == run for key, run in some.run_of.items())
        assert all(to_dict(whole.configs[run]) == to_dict(config) for run, config in some.configs.items())
    assert list(plan("topk").configs) == ["full"]


def test_another_alpha_is_another_full_model():
    config = base()
    config.loss.alpha = 0.8
    found = plan("1,3", config)
    assert (found.run_of["1", 4], found.run_of["3", 3], found.run_of["3", 2]) == ("full", "full", "alpha_0.9")
    assert runs.changes(found.configs["alpha_0.9"], found.full) == ["loss.alpha=0.9"]
    assert found.configs["individual"].loss.alpha == 0.8


def test_data_sets_take_fields_of_the_command_line_but_stay_what_they_are():
    given = {"data.root": "here", "epochs": 3, "data.name": "reid_folder", "data.options.seed": 5}
    found = plan("4,5", overrides=given)
    names = {run: config.data.name for run, config in found.configs.items()}
    assert names == {
        "market1501": "market1501", "dukemtmc": "dukemtmc_reid", "msmt17": "msmt17", "occluded_duke": "occluded_dukemtmc",
    }  # fmt: skip
    for config in found.configs.values():
        assert (config.data.root, config.epochs) == ("here", 3)
        assert "seed" not in config.data.options and config.data.options.check_counts


def test_table_4_of_a_data_sets_own_config_is_its_full_model():
    duke = paper()
    duke.data.name, duke.data.root = "dukemtmc_reid", "data"
    duke.data.options = ConfigDict({"check_counts": True})
    found = runs.make_plan(duke, ("1", "4"), CONFIGS / "dukemtmc.py", {})
    assert found.run_of["4", 1] == "full" and found.run_of["4", 0] == "market1501"


def test_rows_have_the_papers_pair_stage_unless_the_command_line_asks_otherwise():
    """configs/synthetic.py has a clue distance of weight 0.9 and untied filters, which the paper's rows must not have."""
    config = base()
    config.model.pair = ConfigDict({"filters": "untied", "keys": "correlation", "clue_weight": 0.9})
    made = runs.make_plan(config, ("1",), CONFIGS / "synthetic.py", {})
    assert made.full.model.pair_stage == "conditional" and not made.full.model.pair
    assert made.configs["normal"].model.pair.to_dict() == {"kind": "normal"}
    made = runs.make_plan(config, ("1",), CONFIGS / "synthetic.py", {"model.pair.clue_weight": 0.9})
    assert made.full.model.pair.to_dict() == {"clue_weight": 0.9}
    config.model.pair_stage, config.model.pair = "evidence", ConfigDict({"features": 8})
    assert runs.make_plan(config, ("1",), CONFIGS / "synthetic.py", {}).full.model.pair_stage == "conditional"
    made = runs.make_plan(config, ("topk",), CONFIGS / "synthetic.py", {"model.pair_stage": "evidence"})
    assert made.full.model.pair_stage == "evidence" and made.full.model.pair.features == 8


def test_configs_of_data_sets_lie_beside_the_config(tmp_path):
    with pytest.raises(UserError, match=r"market1501.py: found no such file, expected the configs of tables 4 and 5"):
        runs.make_plan(base(), ("4",), tmp_path / "mine.py")


def test_one_seed_after_the_other_and_other_data_sets_last():
    order = runs.training_order(plan("1,4"), (0, 5))
    rows = ["full", "individual", "clues", "individual_gcn", "normal"]
    others = ["market1501", "dukemtmc", "msmt17"]
    assert order == [(run, seed) for part in (rows, others) for seed in (0, 5) for run in part]


def finish(folder, config, data=DATA, step=80, settings=None, **results):
    """Write what a run of 80 epochs leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    scored_by = {name: config.eval[name] for name in SCORED_BY} | (settings or {})
    marks = {"data": data.scored, "network": "n", "settings": scored_by}
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "data.json").write_text(json.dumps(data.train))
    (folder / "results.json").write_text(json.dumps(RESULTS | {"fingerprint": marks} | results))
    lines = [
        {"step": 1, "loss": 9.0, "degree": 1.0},
        {"step": step, "loss": 3.0, "degree": 2.5},
        {"step": 80, "val/x": 1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def outcome(folder, config, data=DATA):
    return runs.outcome(folder, config, data)


def test_a_finished_run_is_done_and_knows_its_health(tmp_path):
    config = runs.with_seed(base(), 3)
    assert config.seed == 3 and outcome(tmp_path / "none", config) is None
    folder = runs.folder_of(tmp_path, "full", 3)
    assert folder == tmp_path / "runs/full/seed_3"
    finish(folder, config)
    found = outcome(folder, config)
    assert found.results["individual"]["mAP"] == 0.5 and found.seconds is None
    assert found.health == {"loss": 3.0, "degree": 2.5}
    (folder / "reproduce.json").write_text('{"seconds": 12.5}')
    assert outcome(folder, config).seconds == 12.5


def test_a_run_that_was_stopped_is_not_done(tmp_path):
    finish(tmp_path, base())
    (tmp_path / "results.json").unlink()
    assert outcome(tmp_path, base()) is None


@pytest.mark.parametrize(
    ("field", "value", "is_done"),
    [
        ("eval.flip", False, False), ("eval.mix", 0.4, False), ("eval.top_k", 50, False),
        ("eval.camera_filter", False, False), ("eval.memory_gib", 1.0, True), ("eval.batch_size", 8, True),
        ("data.workers", 2, True),
    ],
)  # fmt: skip
def test_a_run_that_was_scored_in_another_way_is_scored_again(tmp_path, field, value, is_done):
    finish(tmp_path, base())
    config = base()
    config.update_from_flattened_dict({field: value})
    assert (outcome(tmp_path, config) is not None) == is_done


def test_a_top_k_that_was_cut_to_the_gallery_is_the_same_one(tmp_path):
    config = base()
    config.eval.top_k = 500
    finish(tmp_path, config, settings={"top_k": 300})  # the gallery has 200 images
    assert outcome(tmp_path, config) is not None
    finish(tmp_path, config, settings={"top_k": 100})  # --mode=evaluate with another K came after
    assert outcome(tmp_path, config) is None


def test_a_stopped_run_that_was_evaluated_is_not_done(tmp_path):
    finish(tmp_path, base(), step=79)
    assert outcome(tmp_path, base()) is None
    finish(tmp_path, base(), **{"step": 80})
    (tmp_path / "results.json").write_text((tmp_path / "results.json").read_text().replace('"step": 80', '"step": 60'))
    assert outcome(tmp_path, base()) is None


def test_results_count_only_for_the_data_that_they_are_of(tmp_path):
    """A CSV that changed (other people, a mended label) or images that were replaced: neither old run nor old scores."""
    finish(tmp_path, base())
    assert outcome(tmp_path, base()) is not None
    for other in (
        DATA._replace(scored="other queries or gallery"),
        DATA._replace(train=DATA.train | {"sha256": "other people"}),
        DATA._replace(train=DATA.train | {"pixels": "other images"}),
        runs.DataState(None, None),  # not prepared
        runs.DataState(None, None, "the folder does not exist"),
    ):
        assert outcome(tmp_path, base(), other) is None


def test_results_of_the_run_count_beside_a_later_evaluation_with_other_settings(tmp_path):
    finish(tmp_path, base())
    (tmp_path / "results.json").rename(tmp_path / "results_0123abcd.json")
    finish(tmp_path, base(), settings={"mix": 0.9}, individual={"mAP": 0.1})
    assert outcome(tmp_path, base()).results["individual"]["mAP"] == 0.5


def test_a_run_of_another_config_is_an_error(tmp_path):
    finish(tmp_path, base())
    config = base()
    config.epochs = 3
    with pytest.raises(UserError, match=r"found a run of another config \(epochs: 80 -> 3\)"):
        outcome(tmp_path, config)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: found no JSON"):
        outcome(tmp_path, base())


def test_data_that_is_not_there_is_told_and_rendered_data_is_always_there(tmp_path):
    config = base()
    config.data.dir = str(tmp_path)
    assert runs.data_state(config) == runs.DataState(None, None)  # rendered when it is needed
    config.data.name, config.data.root = "market1501", str(tmp_path / "nowhere")
    assert "does not exist" in runs.data_state(config).absent
    config.data.root, config.data.dir = None, str(tmp_path)
    assert "no data root given and nothing prepared" in runs.data_state(config).absent
