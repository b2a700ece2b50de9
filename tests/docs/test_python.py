"""The Python of the README and the pages runs, beside a small trained workdir and a few images."""

from runpy import run_path

import cv2
import numpy as np
import pytest
from documents import PAGES, ROOT, blocks

from cacenet_jax.train import train

RUNNING = [path for path in PAGES if any(block.runs for block in blocks(path))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """workdirs/synthetic of a tiny network, and images of query/ and gallery/."""
    folder = tmp_path_factory.mktemp("docs")
    config = run_path(str(ROOT / "tests/configs/tiny.py"))["get_config"]()
    config.epochs, config.data.dir = 2, str(folder / "prepared")
    train(config, str(folder / "workdirs/synthetic"))
    random = np.random.default_rng(0)
    for place, count in (("query", 2), ("gallery", 12)):
        (folder / place).mkdir()
        for number in range(count):
            image = random.integers(0, 256, (48, 24, 3), np.uint8)
            cv2.imwrite(str(folder / place / f"{number + 1}.jpg"), image)
    return folder


def test_notes():
    """A block that does not run as it stands says why, or which test runs it."""
    for path in PAGES:
        for block in blocks(path):
            assert block.note.startswith(("skip, ", "the example of ")) or not block.note, path.name


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_page(path, request, monkeypatch):
    """All blocks of a page in one namespace, in the folder where the pages' names mean something."""
    running = [block for block in blocks(path) if block.runs]
    if any("workdirs/" in block.code for block in running):
        monkeypatch.chdir(request.getfixturevalue("folder"))
    names = {"__name__": path.stem}
    for block in running:
        exec(compile("\n" * block.line + block.code, str(path), "exec"), names)
