"""Which file --config names: the user's own first, then a config of the package."""

import pytest
from command import ROOT

from cacenet_jax.run import config_files
from cacenet_jax.run.config_files import resolve, resolve_flag

SYNTHETIC = str(ROOT / "configs/synthetic.py")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["synthetic", "synthetic.py", "configs/synthetic.py", "./configs/synthetic.py"])
@pytest.mark.parametrize("argument", ["", ":baseline", ":a:b"])
def test_a_config_of_the_package_is_found_from_any_folder(empty, name, argument):
    assert resolve(name + argument) == SYNTHETIC + argument


@pytest.mark.parametrize(
    "text", ["", "synthetic.txt", "mine/synthetic.py", "/configs/synthetic.py", "configs", "synthetik.py"]
)
def test_another_name_stays_as_it_is(empty, text):
    assert resolve(text) == text


def test_the_users_file_goes_before(empty):
    (empty / "configs").mkdir()
    (empty / "configs/synthetic.py").touch()
    assert resolve("configs/synthetic.py:row") == "configs/synthetic.py:row"
    assert resolve("synthetic.py") == SYNTHETIC


def test_an_installed_package_has_them_inside(empty, monkeypatch):
    package = empty / "site-packages/cacenet_jax"
    (package / "configs").mkdir(parents=True)
    (package / "configs/synthetic.py").touch()
    (empty / "site-packages/configs").mkdir()  # of another package
    monkeypatch.setattr(config_files, "_PACKAGE", package)
    assert resolve("configs/synthetic.py") == str(package / "configs/synthetic.py")
    assert config_files.names() == ["synthetic"]


def test_both_forms_of_the_flag_are_resolved(empty):
    argv = ["main.py", "--workdir=w", "--config=synthetic:row", "--config.seed=3", "--mode", "train"]
    assert resolve_flag(argv) == ["main.py", "--workdir=w", f"--config={SYNTHETIC}:row", *argv[3:]]
    assert resolve_flag(["main.py", "--config", "synthetic"]) == ["main.py", "--config", SYNTHETIC]
    assert resolve_flag(["main.py", "--config"]) == ["main.py", "--config"]
