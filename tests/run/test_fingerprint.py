"""Results belong to their data: fingerprints, files of their own, and warnings about scores that mean little."""

import json

import numpy as np
import pytest

from cacenet_jax.data.builders import Split
from cacenet_jax.data.builders.split import Records
from cacenet_jax.data.subsets import all_records
from cacenet_jax.evaluate import doubts
from cacenet_jax.run.fingerprint import keep_others, matching_results, results_path


def marks(data="d" * 16, network="n", **settings):
    return {"data": data, "network": network, "settings": settings}


def write(path, value):
    path.write_text(json.dumps({"fingerprint": value, "individual": {}}))


def subset(pids, camids, checksums):
    names = [f"{i}.jpg" for i in range(len(pids))]
    return all_records(Split(Records([]), np.array(pids), np.array(camids), names, np.array(checksums)))


@pytest.mark.parametrize("column", ["pids", "camids", "checksums", "names"])
def test_the_digest_of_a_split_covers_names_labels_and_images(column):
    values = {"pids": np.array([1, 2]), "camids": np.array([1, 1]), "names": ["a", "b"], "checksums": np.array([5, 6])}
    changed = values | {column: ["a", "c"] if column == "names" else values[column] + [0, 1]}
    assert Split(Records([]), **values).digest == Split(Records([]), **values).digest
    assert Split(Records([]), **values).digest != Split(Records([]), **changed).digest


def test_the_summary_of_training_data_covers_the_images():
    first, second = subset([1, 2], [1, 1], [5, 6]).summary(), subset([1, 2], [1, 1], [5, 7]).summary()
    assert first["sha256"] == second["sha256"] and first["pixels"] != second["pixels"]


def test_results_of_other_data_get_a_file_of_their_own(tmp_path):
    assert results_path(tmp_path, "results", "a" * 16) == tmp_path / "results.json"
    assert results_path(tmp_path, "results", "a" * 16, is_own=False) == tmp_path / "results_aaaaaaaa.json"
    write(tmp_path / "results.json", marks())
    assert results_path(tmp_path, "results", "d" * 16, is_own=False) == tmp_path / "results.json"
    assert results_path(tmp_path, "results", "e" * 16) == tmp_path / "results_eeeeeeee.json"
    assert results_path(tmp_path, "results_market1501", "e" * 16) == tmp_path / "results_market1501.json"


def test_results_with_other_settings_are_kept_beside_the_new_ones(tmp_path):
    path = tmp_path / "results.json"
    keep_others(path, marks())  # nothing there
    write(path, marks(mix=0.5))
    keep_others(path, marks(mix=0.5))
    assert path.exists()  # the same results again
    keep_others(path, marks(mix=0.9))
    assert not path.exists()
    (kept,) = tmp_path.glob("results_*.json")
    assert json.loads(kept.read_text())["fingerprint"] == marks(mix=0.5)


def test_a_page_gets_only_results_of_its_data_and_network(tmp_path):
    write(tmp_path / "results.json", marks(data="trained on"))
    assert matching_results(tmp_path, "drawn from", "n") is None
    write(tmp_path / "results_drawn.json", marks(data="drawn from"))
    assert matching_results(tmp_path, "drawn from", "n")["fingerprint"]["data"] == "drawn from"
    assert matching_results(tmp_path, "drawn from", "another") is None


def test_labels_of_one_person_are_doubted():
    gallery = subset([3, 3], [1, 2], [5, 6])
    (reason,) = doubts(subset([3], [3], [4]), gallery, camera_filter=True)
    assert "all gallery images show one identity" in reason


@pytest.mark.parametrize(("camid", "camera_filter", "copies"), [(1, True, 0), (1, False, 1), (2, True, 1)])
def test_queries_that_are_their_own_match_are_doubted(camid, camera_filter, copies):
    gallery = subset([3, 3, 4], [camid, 2, 1], [5, 6, 7])
    reasons = doubts(subset([3, 4], [1, 2], [5, 8]), gallery, camera_filter=camera_filter)
    assert bool(reasons) == bool(copies)
    assert not reasons or reasons[0].startswith("1 of 2 queries are in the gallery too")


def test_a_file_that_two_identities_share_is_no_match_of_itself():
    assert doubts(subset([3], [1], [5]), subset([4, 3], [2, 2], [5, 6]), camera_filter=True) == []
