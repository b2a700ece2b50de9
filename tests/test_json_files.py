"""JSON files that are damaged: each reader gives one line that names the file, or ignores the file as documented."""

import json
import shutil

import pytest
from own_images import ROWS, manifest

from cacenet_jax import experiment
from cacenet_jax.config import paper
from cacenet_jax.data import json_files
from cacenet_jax.data.builders import prepare
from cacenet_jax.data.builders.split import Prepared, open_split, read_metadata, split_counts
from cacenet_jax.errors import UserError
from cacenet_jax.export.folder import read_manifest
from cacenet_jax.reproduce import runs, sweep
from cacenet_jax.run import fingerprint, integrity
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.completion import read_config
from cacenet_jax.run.initialisation import check_source
from cacenet_jax.run.metric_writer import MetricWriter
from cacenet_jax.run.workdir import check_network, check_workdir, recorded_data

DAMAGE = {
    "empty": b"",
    "NUL": b"\0" * 4096,
    "no UTF-8": b'{"step": "\xff\xfe"}',
    "cut": b'{"step": 4, "images": ',
    "nested lists": b"[" * 100_000,
    "nested fields": b'{"model": ' * 900 + b"1" + b"}" * 900,
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
    "huge number": b'{"step": ' + b"9" * 4000 + b', "epochs": ' + b"9" * 4000 + b', "loss": 1e999, "mAP": 1e999}',
    "infinite": b'{"step": Infinity, "epochs": NaN, "mAP": NaN, "seconds": NaN}',
    "a list": b"[1, 2]",
    "a number": b"12",
    "null": b"null",
    "groups of other types": b'{"model": 3, "data": [1], "fingerprint": 7, "options": 2, "custom_metadata": {"arrays": 5}}',
    "values of other types": b'{"model": {"backbone": ["x"], "pair_stage": {}}, "epochs": "x", "fingerprint": {"data": []}}',
    "lists of other lengths": b'{"options": {}, "origin": "a", "skipped": [["b"]], "copies": 3, "config": {"data": "x"}}',
}


def config():
    values = paper()
    values.data.name = "synthetic_pedestrians"
    return values


PLAIN, EVALUATION, DATA = to_dict(config()), experiment.read(config()).evaluation, {"images": 16, "sha256": "a"}


def reproduced(folder):
    """The outcome of a run whose other files are whole."""
    settings = {name: PLAIN["eval"][name] for name in fingerprint.SCORED_BY}
    marks = {"data": "scored", "network": "n", "settings": settings | {"top_k": 20}}
    results = {"step": 80, "num_gallery": 20, "fingerprint": marks}
    files = {
        "config.json": PLAIN,
        "data.json": DATA,
        "results.json": results,
        "metrics.jsonl": {"step": 80, "loss": 1.0},
    }
    for name, value in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(value))
    return runs.outcome(folder, config(), runs.DataState(DATA, "scored"))


def first_stage(folder):
    (folder / "checkpoints").mkdir()
    if not (folder / "config.json").exists():  # data.json is the one that is damaged
        (folder / "config.json").write_text(json.dumps(PLAIN))
    for frozen in (True, False):
        plain = PLAIN | {"model": PLAIN["model"] | {"frozen": frozen}, "data": PLAIN["data"] | {"val_share": 0.2}}
        check_source(folder, plain, DATA)


def checkpoint(folder):
    (folder / "state").mkdir()
    return integrity.record(folder)


# Reader -> its file and function; each raises a UserError that names the file, or finds nothing in it that fits.
READERS = {
    "config of a workdir": ("config.json", lambda folder: read_config(folder, "--workdir")),
    "config of a run that goes on": ("config.json", lambda folder: check_workdir(folder, PLAIN)),
    "config of a network": ("config.json", lambda folder: check_network(folder, PLAIN)),
    "config of a first stage": ("config.json", first_stage),
    "data of a first stage": ("data.json", first_stage),
    "training data": ("data.json", recorded_data),
    "training data of a study": ("data.json", reproduced),
    "results of a study": ("results.json", reproduced),
    "seconds of a study": ("reproduce.json", reproduced),
    "metrics of a study": ("metrics.jsonl", reproduced),
    "sweep": ("top_k.json", lambda folder: sweep.done(folder, EVALUATION)),
    "checkpoint": ("_CHECKPOINT_METADATA", checkpoint),
    "validation": ("metrics/metrics", integrity.validation_map),
    "manifest of an export": ("manifest.json", read_manifest),
    "prepared data": ("metadata.json", lambda folder: read_metadata(str(folder))),
}
NO_OBJECT = set(DAMAGE) - {"infinite", "groups of other types", "values of other types", "lists of other lengths"}
IGNORED = {"metrics of a study", "sweep"}  # never an error


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_named_in_one_line_or_ignored(tmp_path, reader, damage):
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(DAMAGE[damage])
    message = None
    try:
        read(tmp_path)
    except UserError as error:
        message = str(error)
    assert message is None if reader in IGNORED else message or damage not in NO_OBJECT
    if message:
        assert str(tmp_path) in message and "\n" not in message and len(message) < 1000
        assert name.split("/")[-1] in message or damage not in NO_OBJECT


def test_a_whole_run_of_a_study_is_read(tmp_path):
    assert reproduced(tmp_path).health == {"loss": 1.0}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_put_aside_by_an_evaluation_and_ignored_by_the_page(tmp_path, damage, caplog):
    path, marks = tmp_path / "results.json", {"data": "d" * 16, "network": "n", "settings": {}}
    path.write_bytes(DAMAGE[damage])
    assert fingerprint.matching_results(tmp_path, marks["data"], marks["network"]) is None
    assert fingerprint.results_path(tmp_path, "results", marks["data"]) == path
    try:
        json_files.read(path, "")
        is_json = True
    except UserError:
        is_json = False
    fingerprint.keep_others(path, marks)
    assert path.exists() == is_json  # no fingerprint in it: an earlier version's
    assert is_json or (tmp_path / "damaged_results.json").read_bytes() == DAMAGE[damage]
    assert is_json or caplog.records[0].getMessage().startswith(f"{path}: found ")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_of_metrics_are_dropped(tmp_path, damage):
    whole = b'{"step": 3, "loss": 0.5}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([whole, DAMAGE[damage], b'{"step": 9}', b""]))
    MetricWriter(tmp_path, 4).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole + b"\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return prepare("reid_folder", root=str(manifest(folder / "own", ROWS)), data_dir=str(folder), progress=False)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_prepared_data_is_told(prepared, tmp_path, name, damage):
    copy = Prepared("reid_folder", str(shutil.copytree(prepared.directory, tmp_path / "1.0.0")))
    (tmp_path / "1.0.0" / name).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match=r"1\.0\.0.*remove this directory and prepare again") as error:
        read_metadata(copy.directory), split_counts(copy.directory), open_split(copy, "train").records[0]
    assert "\n" not in str(error.value)


def test_a_json_file_that_is_whole(tmp_path):
    assert json_files.read(tmp_path / "none.json", "") is None
    (tmp_path / "whole.json").write_text('{"a": [1, {"b": 2.5}], "c": "\\u00e9"}')
    assert json_files.read(tmp_path / "whole.json", "") == {"a": [1, {"b": 2.5}], "c": "é"}
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\).*; remove it"):
        json_files.read(tmp_path, "remove it")
    values = (3, 0.5, True, "3", None, [], float("nan"), 1e999, 10**400)
    assert [json_files.number(value) for value in values] == [3, 0.5, 1.0, *[None] * 6]
