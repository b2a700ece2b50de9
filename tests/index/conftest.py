"""Fixtures: a network in a workdir and its export, loaded, and a folder of photographs."""

from types import SimpleNamespace

import pytest
from own_images import images
from tiny_index import NAMES, workdir

import cacenet_jax as cace
from cacenet_jax.export import run as export


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    config = workdir(folder / "run", 0)
    workdir(folder / "other", 1)
    made = export.export(config, folder / "run")
    return SimpleNamespace(workdir=folder / "run", other=folder / "other", export=made)


@pytest.fixture(scope="session")
def reid(network):
    return cace.load(network.workdir)


@pytest.fixture
def photographs(tmp_path):
    return images(tmp_path / "photographs", NAMES)


@pytest.fixture
def index(reid, photographs, tmp_path):
    return reid.index(photographs, tmp_path / "photographs.lance")
