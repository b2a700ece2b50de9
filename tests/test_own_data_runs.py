"""Training and evaluation on a user's own images: broken ones left out, and a test set without a train split."""

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
    test = [f"{split}/{pid}/c{camid}.png" for split, camid in (("query", 1), ("gallery", 2)) for pid in (7, 8)]
    images(folder / "all", names + test)
    images(folder / "test", test)
    for name in ("train/0/c1_9.png", "gallery/7/c2_9.png"):
        (folder / "all" / name).write_bytes(b"")
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
