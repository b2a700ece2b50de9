"""--mode=visualize from a network to the page, and which images it compares."""

import importlib.util
import json
import re

import cv2
import jax
import numpy as np
import optax
import pytest
from browser import parsed
from command import TINY
from command_in_process import run_main
from tiny_workdir import workdir

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data.builders import TEST_SPLITS, open_split
from cacenet_jax.data.subsets import all_records
from cacenet_jax.errors import UserError
from cacenet_jax.evaluate import describe, score
from cacenet_jax.retrieval.distances import DISTANCES
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


def check(folder, results, figures, count, ranks, more=0):
    """The files and what the page says; there are no learning curves."""
    assert sorted(path.name for path in folder.iterdir()) == [*(f"figure{name}.png" for name in figures), "report.html"]
    for path in folder.glob("*.png"):
        assert min(cv2.imread(str(path)).shape[:2]) > 100
    shown = parsed(folder / "report.html")
    assert [text.split()[0] for _, text in shown.items] == [str(rank + 1) for rank in range(ranks)] * 2 * count
    assert (
        len(shown.images)
        == count * (1 + 2 * ranks) + len([name for name in figures if not name.startswith("6")]) + more
    )
    for ranking in ("individual", "mixed"):
        assert f"{ranking} {100 * results[ranking]['mAP']:.2f}" in shown.text
    # What is shown is what was evaluated.
    assert f"{100 * (results['mixed']['mAP'] - results['individual']['mAP']):+.2f} points" in shown.text
    return shown


def test_figures_and_page_of_the_conditional_distance(untrained, tmp_path, capsys):
    config, workdir, results = untrained()
    config.visualize.num_queries, config.visualize.ranks = 2, 2
    page = report.visualize(config, workdir)
    check(workdir / "figures", results, ["4_1", "4_2", "5_1", "5_2", "6_1", "6_2"], 2, 2)
    assert str(page) in capsys.readouterr().out
    (tmp_path / "file/figures").parent.mkdir()
    (tmp_path / "file/figures").touch()
    with pytest.raises(UserError, match="file/figures: found no folder that can be written"):
        report.visualize(config, tmp_path / "file")
    config.visualize.num_queries = 1  # leaves no old figure behind
    report.visualize(config, workdir)
    check(workdir / "figures", results, ["4_1", "5_1", "6_1"], 1, 2)


def ranking(config):
    """The names of queries and gallery, and the distances that rank the tiny network's gallery."""
    trained = report.load(config, None)
    query, gallery = (all_records(open_split(trained.prepared, split)) for split in ("query", "gallery"))
    described = describe(trained.settings, trained.net, trained.state, query, gallery)
    individual_QG = DISTANCES[described.settings.distance](described.query.embedding, described.gallery.embedding)
    pair_QG = described.rescore(np.tile(np.arange(len(gallery.pids)), (len(query.pids), 1)))
    mixed_QG = described.settings.mix * pair_QG + (1 - described.settings.mix) * individual_QG
    return query.split.names, gallery.split.names, (individual_QG, pair_QG, mixed_QG)


def test_chosen_queries_are_drawn_with_the_distances_that_rank_the_gallery(untrained):
    config, workdir, results = untrained()
    queries, gallery, (individual_QG, _, mixed_QG) = ranking(config)
    config.visualize.ranks, config.visualize.queries = 3, f"{queries[5]},{queries[2]}"
    report.visualize(config, workdir)
    shown = check(workdir / "figures", results, ["4_1", "4_2", "5_1", "5_2", "6_1", "6_2"], 2, 3)
    titles = [part.split(",")[0] for part in re.split(r"Query \d: average precision [^,]*, \w+ ", shown.text)[1:]]
    assert titles == [queries[5], queries[2]]
    items = iter(" ".join(text.split()) for _, text in shown.items)
    for q in (5, 2):
        for distance_QG in (individual_QG, mixed_QG):
            previous = -1.0
            for rank in range(1, 4):
                place, _, distance, name = next(items).split(" ")
                assert place == str(rank) and distance == f"{distance_QG[q, gallery.index(name)]:.4f}"
                assert float(distance) >= previous
                previous = float(distance)


def test_a_chosen_pair_is_drawn_without_ranking_the_gallery(untrained, monkeypatch):
    config, workdir, _ = untrained()
    queries, gallery, distances = ranking(config)
    config.visualize.pair = f"{queries[1]},{gallery[4]}"
    monkeypatch.setattr(report, "rank", lambda *arguments: pytest.fail("the gallery was ranked"))
    report.visualize(config, workdir)
    names = ["figure4_pair.png", "figure5_pair.png", "report.html"]
    assert sorted(path.name for path in (workdir / "figures").iterdir()) == names
    shown = parsed(workdir / "figures/report.html")
    assert [" ".join(text.split()) for _, text in shown.items] == [f"A: {queries[1]}", f"B: {gallery[4]}"]
    words = re.search(r"A and B (\S+) (\S+) (\S+)", shown.text).groups()
    np.testing.assert_allclose(np.float64(words), [x[1, 4] for x in distances], atol=1e-4)  # stored in bfloat16
    assert "Query" not in shown.text and len(shown.images) == 4


def test_wrong_names_are_one_line_each_before_anything_is_drawn(untrained):
    config, workdir, _ = untrained()
    config.visualize.queries, config.visualize.pair = "nobody", "nobody,nothing"
    with pytest.raises(UserError) as error:
        report.visualize(config, workdir)
    lines = str(error.value).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "config.visualize.queries: found 'nobody'", "config.visualize.pair: found 'nobody'",
    ]  # fmt: skip
    assert not (workdir / "figures").exists()


def test_learning_curves_of_a_run(untrained):
    config, workdir, _ = untrained()
    queries, gallery, _ = ranking(config)
    config.visualize.pair = f"{queries[1]},{gallery[4]}"  # drawn quickly
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    (workdir / "data.json").write_text('{"images": 48}')
    report.visualize(config, workdir)
    assert min(cv2.imread(str(workdir / "figures/curves.png")).shape[:2]) > 100
    shown = parsed(workdir / "figures/report.html")
    assert shown.images[-1][0] == "Learning curves against the training step" and shown.images[-1][1] > 400
    (workdir / "metrics.jsonl").write_text('{"step": 4, "lo')
    report.visualize(config, workdir)
    assert not (workdir / "figures/curves.png").exists()  # an old figure does not stay
    assert "Learning curves None" in parsed(workdir / "figures/report.html").text


def test_unknown_names_end_with_exit_code_2_and_one_line(tmp_path, data_dir):
    workdir(tmp_path / "run", **{"data.dir": data_dir})
    done = run_main(tmp_path, "--mode=visualize", "--workdir=run", "--config.visualize.queries=0009_c9.png,zebra")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "config.visualize.queries: found '0009_c9.png' (close: " in done.stderr and "'zebra'" in done.stderr


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
    (command.folder / "run/figures/curves.png").unlink()
    check(command.folder / "run/figures", results, ["4_1", "5_1", "6_1"], 1, 3, more=1)


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
