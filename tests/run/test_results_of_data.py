"""Results belong to their data: reproduce, evaluate and visualize on data that changed after a run was trained."""

import json
import shutil

import jax
import pytest
from command import TINY
from command_in_process import run_main
from jax.experimental.compilation_cache import compilation_cache
from own_images import picture

from cacenet_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections, of a config file
RUN = "study/runs/full/seed_0"
STUDY = ("--mode=reproduce", "--workdir=study", "--seeds=1", "--config.data.dir=prepared", "--config.epochs=2")
# topk trains a single run, the full model of the tables.
TOP_K = (
    f"--config={TINY}:reid_folder", *STUDY, "--table=topk", "--config.data.num_ids=4", "--config.eval.top_k=4",
)  # fmt: skip
PAPER_ROWS = """from runpy import run_path


def get_config():
    config = run_path({tiny!r})["get_config"]("reid_folder")
    config.model.pair = dict(clue_weight=0.9, filters="untied")
    return config
"""


def rows(train=range(1, 5), test=range(11, 15)):
    """(path, pid, camid, split): four images of each person in train; one in query and one in gallery."""
    names = [(pid, camid, k, "train") for pid in train for camid in (1, 2) for k in (0, 1)]
    names += [(pid, camid, 0, split) for pid in test for camid, split in ((1, "query"), (2, "gallery"))]
    return [(f"{pid}_{camid}_{k}.png", pid, camid, split) for pid, camid, k, split in names]


def write(folder, name, rows):
    """Write a manifest and its images below data; return the flag that names it."""
    (folder / "data").mkdir(exist_ok=True)
    for path in {path for path, *_ in rows if not (folder / "data" / path).exists()}:
        (folder / "data" / path).write_bytes(picture(path))
    lines = ["path,pid,camid,split", *(",".join(map(str, row)) for row in rows)]
    (folder / "data" / name).write_text("\n".join(lines) + "\n")
    return f"--config.data.root=data/{name}"


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Commands load the programs that an earlier one compiled, as they do for a user."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of one run, and the flag that names its data."""
    folder = tmp_path_factory.mktemp("trained")
    root = write(folder, "people.csv", rows())
    done = run_main(folder, *TOP_K, root)
    assert done.returncode == 0, done.stderr
    return folder, root


@pytest.fixture
def study(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy", trained[1]


def error(done):
    """The one line of an error."""
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith(("preparing ", "reproducing: ", "WARNING: "))
    ]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def test_a_finished_study_prints_its_table_again(study):
    folder, root = study
    table = (folder / "study/table_topk.md").read_text()
    assert "4 queries, 4 gallery images" in table and "1 of 1 seeds" in table
    done = run_main(folder, *TOP_K, root)
    assert done.returncode == 0 and "==" not in done.stdout and table in done.stdout


def test_reproduce_scores_a_finished_run_again_when_a_label_of_the_gallery_changed(study):
    folder, root = study
    before = (folder / RUN / "results.json").read_text()
    path, _, camid, split = rows()[-1]
    write(folder, "people.csv", [*rows()[:-1], (path, 13, camid, split)])  # query 14 has no match then
    done = run_main(folder, *TOP_K, root)
    assert done.returncode == 0, done.stderr
    assert f"continuing {RUN} from step 4 of 4" in done.stdout and "step 4/4" not in done.stderr
    results = json.loads((folder / RUN / "results.json").read_text())
    assert (json.loads(before)["num_valid"], results["num_valid"]) == (4, 3)
    ranking = results["individual"]
    shown = f"| 0 | {100 * ranking['mAP']:.2f} / {100 * ranking['rank1']:.2f} |"
    assert shown in (folder / "study/table_topk.md").read_text()
    assert before in [path.read_text() for path in (folder / RUN).glob("results_*.json")]


def test_reproduce_has_no_table_of_a_run_on_other_people(study):
    folder, root = study
    write(folder, "people.csv", rows(train=range(5, 9)))
    line = error(run_main(folder, *TOP_K, root))
    assert "1 of 1 runs failed" in line and "data.json: found a run on" in line
    table = (folder / "study/table_topk.md").read_text()
    assert "0 of 1 seeds" in table and "| 4 |" not in table


def test_reproduce_has_no_table_of_data_that_are_gone(study):
    folder, root = study
    done = run_main(folder, *TOP_K, root.replace("people", "nobody"))
    assert "nobody.csv" in error(done) and done.stdout == ""


def test_an_evaluation_on_other_data_leaves_the_results_of_the_run(study):
    folder, root = study
    table, results = (folder / "study/table_topk.md").read_text(), (folder / RUN / "results.json").read_text()
    other = write(folder, "others.csv", rows(test=range(21, 26)))
    done = run_main(folder, "--mode=evaluate", f"--workdir={RUN}", other)
    assert done.returncode == 0 and (folder / RUN / "results.json").read_text() == results, done.stderr
    assert "results.json; their results go to" in done.stderr
    (path,) = (folder / RUN).glob("results_*.json")
    assert json.loads(path.read_text())["num_gallery"] == 5
    done = run_main(folder, *TOP_K, root)
    assert done.returncode == 0 and "==" not in done.stdout and table in done.stdout


def test_the_page_of_other_data_shows_their_results_or_none(study):
    folder, _ = study
    other = write(folder, "others.csv", rows(test=range(21, 26)))
    words = (f"--workdir={RUN}", other, "--config.visualize.num_queries=1", "--config.visualize.ranks=3")
    page = folder / RUN / "figures/report.html"
    assert run_main(folder, "--mode=visualize", *words).returncode == 0
    assert "No results of this network on these data yet" in page.read_text()
    assert run_main(folder, "--mode=evaluate", *words).returncode == 0
    assert run_main(folder, "--mode=visualize", *words).returncode == 0
    assert "5 queries" in page.read_text() and "5 gallery images" in page.read_text()


@pytest.mark.slow
def test_rows_of_table_1_have_the_papers_stage_and_the_header_names_it(tmp_path, monkeypatch):
    """Of a config with another pair distance and untied filters; the rows are not trained here."""
    trained = {}

    def train(config, folder):
        trained[folder.parent.name] = config.model.pair.to_dict()
        raise UserError("not trained")

    monkeypatch.setattr("cacenet_jax.reproduce.runs.train.train", train)
    (tmp_path / "other_stage.py").write_text(PAPER_ROWS.format(tiny=str(TINY)))
    words = (
        "--config=other_stage.py",
        *STUDY,
        "--table=1",
        "--config.data.num_ids=4",
        write(tmp_path, "a.csv", rows()),
    )
    assert "5 of 5 runs failed" in error(run_main(tmp_path, *words))
    stages = {"full": {}, "individual": {}, "clues": {}, "individual_gcn": {"alignment": "individual"}}
    assert trained == {**stages, "normal": {"kind": "normal"}}
    header = (tmp_path / "study/table_1.md").read_text().split("\n| ")[0]
    assert "pair stage conditional" in header and "clue_weight" not in header
    run_main(tmp_path, *words, "--workdir=other", "--config.model.pair.clue_weight=0.9")
    assert trained["full"] == {"clue_weight": 0.9}  # asked for
    assert "clue_weight=0.9" in (tmp_path / "other/table_1.md").read_text().split("\n| ")[0]


DOUBTFUL = {
    "one person": (rows(test=(11,)), "all gallery images show one identity, so that every ranking scores 100"),
    "a match of itself": (
        [*rows(), ("11_1_0.png", 11, 2, "gallery")],
        "1 of 4 queries are in the gallery too, as matches of themselves",
    ),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_scores_that_mean_little_are_warned_about(study, case):
    folder, _ = study
    test, reason = DOUBTFUL[case]
    done = run_main(folder, "--mode=evaluate", f"--workdir={RUN}", write(folder, "doubtful.csv", test))
    assert done.returncode == 0
    (warning,) = [line for line in done.stderr.splitlines() if "gallery" in line and "config.eval.top_k" not in line]
    assert warning.startswith("WARNING: reid_folder: ") and reason in warning
