"""Training and evaluation on a user's own images: broken ones left out, training and test sets that lie apart."""

import json
from runpy import run_path

import pytest
from command import TINY
from own_images import images

from cacenet_jax.errors import UserError
from cacenet_jax.train import evaluate, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data and a workdir, trained without two broken images."""
    folder = tmp_path_factory.mktemp("own")
    names = [f"train/{pid}/c{camid}_{k}.png" for pid in range(4) for camid in (1, 2) for k in (0, 1)]
    images(folder / "train", names)
    test = [f"{split}/{pid}/c{camid}.png" for split, camid in (("query", 1), ("gallery", 2)) for pid in (7, 8)]
    images(folder / "all", names + test)
    images(folder / "test", test)
    for name in ("all/train/0/c1_9.png", "all/gallery/7/c2_9.png", "train/train/0/c1_9.png"):
        (folder / name).write_bytes(b"")
    config = run_path(str(TINY))["get_config"]("reid_folder")
    config.epochs, config.data.on_error = 2, "skip"
    config.data.root, config.data.dir = str(folder / "all"), str(folder / "prepared")
    train(config, folder / "run")
    return folder, config


def test_broken_images_are_left_out_of_training_and_ranking(trained):
    folder, config = trained
    results = json.loads((folder / "run" / "results.json").read_text())
    assert (results["num_query"], results["num_gallery"]) == (2, 2)
    config = config.copy_and_resolve_references()
    config.data.on_error = "raise"
    with pytest.raises(UserError, match="found 0 bytes"):
        train(config, folder / "other run")


def test_an_evaluation_set_needs_no_train_split(trained):
    folder, config = trained
    before = json.loads((folder / "run" / "results.json").read_text())
    config = config.copy_and_resolve_references()
    config.data.root = str(folder / "test")
    found = evaluate(config, folder / "run")
    assert found["mixed"] == before["mixed"]  # the same images
    with pytest.raises(UserError, match=r"split train of .*/test has no images"):
        train(config, folder / "third run")


@pytest.mark.slow
def test_training_needs_no_test_split(trained, capsys, caplog):
    folder, config = trained
    config = config.copy_and_resolve_references()
    config.data.root = str(folder / "train")
    assert train(config, folder / "alone") == {}
    assert not (folder / "alone" / "results.json").exists()
    (line,) = (record.message for record in caplog.records if "gallery" in record.message)
    assert line.startswith("reid_folder: found neither query nor gallery images; the run ends without a ranking")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "not ranked" in line)
    assert line.startswith("reid_folder: trained to step 4; not ranked")
    assert list(json.loads((folder / "alone" / "skipped.json").read_text())) == ["train/0/c1_9.png"]
    with pytest.raises(UserError, match=r"split query and split gallery of .*/train have no images"):
        evaluate(config, folder / "alone")
    config.data.root = str(folder / "test")
    evaluate(config, folder / "alone")
    assert (folder / "alone" / "results.json").exists() and not (folder / "alone" / "skipped.json").exists()


@pytest.mark.parametrize("split,other", [("query", "gallery"), ("gallery", "query")])
def test_half_a_test_split_is_told_before_training(trained, split, other):
    folder, config = trained
    config = config.copy_and_resolve_references()
    root = images(folder / split, [f"train/{pid}_c1.png" for pid in (1, 2)] + [f"{split}/7_c1.png"])
    (root / other).mkdir()
    config.data.root = str(root)
    with pytest.raises(UserError, match=rf"split {other} of .* has no images"):
        train(config, folder / f"{split} alone")


def test_broken_images_of_other_data_are_listed_beside_their_results(trained):
    folder, config = trained
    config = config.copy_and_resolve_references()
    root = images(
        folder / "others", [f"{split}/{pid}/c{c}.png" for split, c in (("query", 3), ("gallery", 4)) for pid in (5, 6)]
    )
    (root / "gallery/5/c5.png").write_bytes(b"")
    evaluate(config, folder / "run")
    config.data.root = str(root)
    evaluate(config, folder / "run")
    listed = {path.name: list(json.loads(path.read_text())) for path in (folder / "run").glob("skipped*.json")}
    (other,) = (path.stem.removeprefix("results_") for path in (folder / "run").glob("results_*.json"))
    assert listed == {
        "skipped.json": ["train/0/c1_9.png", "gallery/7/c2_9.png"],
        f"skipped_{other}.json": ["gallery/5/c5.png"],
    }
