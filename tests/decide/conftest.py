"""A workdir of a tiny network, and photographs of eight people by two cameras with their manifest."""

from types import SimpleNamespace

import pytest
from tiny_workdir import photographs, workdir


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decide")
    run, config = workdir(folder / "run")
    return SimpleNamespace(run=run, config=config, images=photographs(folder / "photographs"))
