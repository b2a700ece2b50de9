"""--mode=visualize from a network to the page, and which images it compares."""

import importlib.util
import json

import cv2
import jax
import numpy as np
import optax
import pytest
from browser import parsed
from command import TINY

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data.builders import TEST_SPLITS, open_split
from cacenet_jax.data.subsets import all_records
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import score
from cacenet_jax.run.fingerprint import fingerprint
from cacenet_jax.run.validation import validate
from cacenet_jax.train import Trained, prepare_data
from cacenet_jax.train_step import create_state
from cacenet_jax.visualize import report
from cacenet_jax.visualize.cases import compared

WORDS = (f"--config={TINY}", "--workdir=run", "--config.data.dir=prepared")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def untrained(tmp_path, data_dir, monkeypatch):
    """A tiny network in place of the one that a workdir would hold, with what it scores."""

    def make(**fields):
        found = importlib.util.spec_from_file_location("tiny", TINY)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        config = module.get_config()
        config.data.dir = data_dir
        config.model.update(fields)
        settings = experiment.read(config)
        net = settings.network.build(8)
        state = create_state(net, optax.sgd(1.0), jax.random.key(0), (config.data.height, config.data.width))
        trained = Trained(settings, net, 12, state, prepare_data(settings.data, TEST_SPLITS))
        load = lambda config, workdir: trained._replace(settings=experiment.read(config))
        monkeypatch.setattr(report, "load", load)
        splits = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
        (tmp_path / "run").mkdir()
        results = score(settings, net, state, *splits)
        results["fingerprint"] = fingerprint(trained.prepared, state, settings.evaluation)
        (tmp_path / "run/results.json").write_text(json.dumps(results))
        return config, tmp_path / "run", results

    return make


def check(folder, results, figures, count, ranks):
    """The files and what the page says."""
    assert sorted(path.name for path in folder.iterdir()) == [*(f"figure{name}.png" for name in figures), "report.html"]
    for path in folder.glob("*.png"):
        assert min(cv2.imread(str(path)).shape[:2]) > 100
    shown = parsed(folder / "report.html")
    assert [text.split()[0] for _, text in shown.items] == [str(rank + 1) for rank in range(ranks)] * 2 * count
    assert len(shown.images) == count * (1 + 2 * ranks) + len([name for name in figures if not name.startswith("6")])
    for ranking in ("individual", "mixed"):
        assert f"{ranking} {100 * results[ranking]['mAP']:.2f}" in shown.text
    # What is shown is what was evaluated.
    assert f"{100 * (results['mixed']['mAP'] - results['individual']['mAP']):+.2f} points" in shown.text
    return shown


def test_figures_and_page_of_the_conditional_distance(untrained, tmp_path, capsys):
    config, workdir, results = untrained()
    config.visualize.num_queries, config.visualize.ranks = 2, 3
    page = report.visualize(config, workdir)
    check(workdir / "figures", results, ["4_1", "4_2", "5_1", "5_2", "6_1", "6_2"], 2, 3)
    assert str(page) in capsys.readouterr().out
    (tmp_path / "file/figures").parent.mkdir()
    (tmp_path / "file/figures").touch()
    with pytest.raises(UserError, match="file/figures: found no folder that can be written"):
        report.visualize(config, tmp_path / "file")
    config.visualize.num_queries = 1  # leaves no old figure behind
    report.visualize(config, workdir)
    check(workdir / "figures", results, ["4_1", "5_1", "6_1"], 1, 3)


@pytest.mark.slow
def test_key_points_have_no_conditional_map(untrained):
    config, workdir, results = untrained(pair_stage="keypoints")
    config.visualize.num_queries = 1
    report.visualize(config, workdir)
    shown = check(workdir / "figures", results, ["5_1", "6_1"], 1, 10)
    assert "no conditional map" in shown.text


@pytest.mark.slow
def test_a_trained_workdir_gets_figures_and_a_page(command):
    words = (*WORDS, "--config.epochs=2")
    assert command(*words).returncode == 0
    done = command(*words, "--mode=visualize", "--config.visualize.ranks=3", "--config.visualize.num_queries=1")
    assert done.returncode == 0, done.stderr
    assert "figures/report.html" in done.stdout
    results = json.loads((command.folder / "run/results.json").read_text())
    check(command.folder / "run/figures", results, ["4_1", "5_1", "6_1"], 1, 3)


@pytest.mark.parametrize(
    "word, told",
    [
        (
            "--config.model.pair_stage=none",
            "config.model.pair_stage: found none, expected a pair stage",
        ),  # nothing to show
        ("--config.eval.data=market1501", "config.eval.data: found 'market1501', expected none"),
    ],
)
def test_what_cannot_be_shown_is_refused(command, word, told):
    done = command(*WORDS, "--mode=visualize", word)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert told in done.stderr
    assert not (command.folder / "run").exists()


def test_fields_that_show_nothing_are_refused():
    for field in ("num_queries", "ranks", "lines"):
        config = paper()
        config.visualize[field] = 0
        with pytest.raises(UserError, match=f"config.visualize.{field}: found 0, expected more than 0"):
            validate(config)


def test_compared_are_the_best_of_the_person_and_of_three_others():
    pids = np.array([7, 7, 7, 1, 1, 2, 3, 4, 7])
    camids = np.array([1, 2, 2, 1, 1, 1, 1, 1, 1])
    order = np.array([4, 3, 1, 5, 2, 7, 6, -1])
    assert compared(order, pids, camids, 7, 1, True).tolist() == [1, 2, 4, 5, 7]
    # None of the person in the list: the first in the gallery that the evaluation counts.
    assert compared(np.array([3, 5]), pids, camids, 7, 1, True).tolist() == [1, 3, 5]
    assert compared(np.array([3, 5]), pids, camids, 7, 1, False).tolist() == [0, 3, 5]
