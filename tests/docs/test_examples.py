"""The worked example of a data set, as a file of the package and a line; that of a backbone is in test_registry.py."""

import importlib
import importlib.util
import sys

import cv2
import numpy as np
import pytest
from documents import ROOT, blocks

from cacenet_jax.data.builders import open_split, prepare
from cacenet_jax.errors import UserError

NAMES = ("train/1/c1_a.png", "train/2/c1_a.png", "train/2/c3_b.png", "query/30/c1_a.png", "gallery/30/c2_a.png")


@pytest.fixture
def person_folders(tmp_path, monkeypatch):
    """The example of docs/dataset.md where it belongs, and its line."""
    (example,) = blocks(ROOT / "docs/dataset.md")
    file = tmp_path / "person_folders.py"
    file.write_text(example.code)
    name = "cacenet_jax.data.builders.person_folders"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    line = {module.PersonFolders.name: module.PersonFolders.__name__}
    assert f'"{module.PersonFolders.name}": "PersonFolders",' in (ROOT / "docs/dataset.md").read_text()
    monkeypatch.setattr(importlib.import_module("cacenet_jax.data.builders.prepare"), "_BUILDERS", line)
    return module


def write_images(folder, names=NAMES):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((16, 8, 3), 80, np.uint8))
    return str(folder)


def test_data_set(person_folders, tmp_path):
    root = write_images(tmp_path / "people")
    prepared = prepare("person_folders", root=root, data_dir=str(tmp_path / "prepared"), progress=False)
    train = open_split(prepared, "train")
    assert list(zip(train.pids, train.camids, train.names, strict=True)) == [
        (1, 1, "1/c1_a.png"),
        (2, 1, "2/c1_a.png"),
        (2, 3, "2/c3_b.png"),
    ]
    assert [len(open_split(prepared, split).pids) for split in ("query", "gallery")] == [1, 1]


def test_data_set_names_a_wrong_file(person_folders, tmp_path):
    root = write_images(tmp_path / "people", (*NAMES, "query/30/camera1.png"))
    with pytest.raises(UserError, match=r"camera1\.png.*expected IDENTITY"):
        prepare("person_folders", root=root, data_dir=str(tmp_path / "prepared"), progress=False)
