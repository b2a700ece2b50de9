"""Fixtures: a network, an index that is served, and a client."""

import os

import pytest
from own_images import images
from serving import SCRIPT, Client, served
from tiny_index import NAMES, workdir

import cacenet_jax as cace


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    workdir(folder / "run", 0)
    images(folder / "photographs", [*NAMES, SCRIPT])
    return folder


@pytest.fixture(scope="module")
def index(place):
    return cace.load(place / "run").index(place / "photographs", place / "p.lance")


@pytest.fixture(scope="module")
def client(index):
    with served(index) as port:
        yield Client(port)


@pytest.fixture
def files_of(place):
    """Names of all files below the folder of the test's data."""
    return lambda: sorted(os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names)
