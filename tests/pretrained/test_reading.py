"""Files of weights: what PyTorch wrote, in both its formats, read without it; safetensors; and what is neither."""

import importlib.util
import os
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cacenet_jax.errors import UserError
from cacenet_jax.pretrained.reading import read

SPEC = importlib.util.spec_from_file_location("maker", Path(__file__).parents[1] / "golden" / "make_torch_file.py")
MAKER = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKER)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=name != "bfloat16")


@pytest.mark.parametrize("path", MAKER.PATHS, ids=lambda path: path.stem)
def test_what_pytorch_saved_is_read_to_the_bit(path):
    found = read(path)
    assert found["bfloat16"].dtype == np.float32
    assert_same(found, MAKER.arrays())


def test_safetensors_are_read_to_the_bit(tmp_path):
    arrays = {name: np.array(value, order="C") for name, value in MAKER.arrays().items()}
    path = tmp_path / "a.safetensors"
    save_file(arrays | {"bfloat16": arrays["bfloat16"].astype(jnp.bfloat16)}, path)
    assert_same(read(path), MAKER.arrays())


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_no_code_of_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"x": Harmful()}, protocol=2))
    with pytest.raises(UserError, match=r"a.pth: found no arrays under names, expected a state dict"):
        read("a.pth")
    assert not Path("harmed").exists()


@pytest.mark.parametrize("path", MAKER.PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [0, 10, 600, -40])
def test_a_file_that_ends_early_is_told(tmp_path, path, size):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut.pth: found a file that cannot be read .*what torch.save writes"):
        read(cut)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80" * 100, pickle.dumps([1, 2])])
def test_something_else_is_told(tmp_path, content):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: found a file that cannot be read"):
            read(tmp_path / name)


def test_an_archive_of_another_kind_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps({}))
        archive.writestr("script/constants.pkl", pickle.dumps(()))
    with pytest.raises(UserError, match="such as TorchScript"):
        read(tmp_path / "script.pt")
