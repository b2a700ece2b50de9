"""Exports from strangers: a manifest names no file outside its folder, and sizes are compared before anything is read."""

import hashlib
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.export import folder as files


def test_a_file_outside_the_export_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret", "notes\x1b[31m.txt"):
        export = tmp_path / str(abs(hash(name)))
        export.mkdir()
        digest = hashlib.sha256(b"secret").hexdigest()
        (export / "manifest.json").write_text(
            json.dumps({"format": 1, "files": {name: {"bytes": 6, "sha256": digest}}})
        )
        monkeypatch.setattr(files, "describe_file", None)
        with pytest.raises(UserError, match=r"manifest\.json: found the file '.*', expected only extractor") as caught:
            files.read_manifest(export)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "found no manifest"),
        ('{"format": 1' + "0" * 5000 + "}", "found no manifest"),
        ('"\\ud800"', "found format None"),
        ("[1]", "found format None"),
        ('{"format": 1}', "found no list of files"),
        ('{"format": 1, "files": ["extractor.onnx"]}', "found no list of files"),
        ('{"format": 1, "files": {"check.npz": 3}}', "check.npz: found no file"),
        (json.dumps({"format": "x" * 1000}), "found format 'x{79}, expected 1"),
    ],
)
def test_a_manifest_of_another_form_is_one_line(tmp_path, text, told):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        files.read_manifest(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_another_size_is_told_without_reading_it(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(bytes(100))
    recorded = {"bytes": 99, "sha256": hashlib.sha256(bytes(100)).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": {"weights.safetensors": recorded}}))
    monkeypatch.setattr(files, "describe_file", None)
    with pytest.raises(UserError, match=r"weights\.safetensors: found another file"):
        files.read_manifest(tmp_path)


def npy(x, **changes) -> bytes:
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(x) | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + x.tobytes()


def test_check_values_are_read_to_the_bit(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3), "c": np.asfortranarray(np.eye(3))}
    np.savez(tmp_path / "check.npz", **arrays)
    values = files.read_check_values(tmp_path)
    assert values.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(values[name], x, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        npy(np.zeros(4), shape=(1 << 35,)),  # 256 GiB
        npy(np.zeros(4), shape=(0,)),
        npy(np.zeros(4), descr="|O"),
        b"\x93NUMPY\x09\x00" + bytes(90),
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_check_values_that_claim_more_or_hold_objects_are_told(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "check.npz", "w") as archive:
        archive.writestr("a.npy", data)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"check\.npz: found no check values"):
        files.read_check_values(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_compressed_check_values_are_told_before_they_are_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "check.npz", a=np.zeros(1 << 22))
    with pytest.raises(UserError, match="arrays that are larger than their file"):
        files.read_check_values(tmp_path)
