"""Weights from strangers: nothing in a file runs, and nothing that it claims is believed before its size is checked."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from faults import weights
from safetensors.numpy import save

from cacenet_jax.errors import UserError
from cacenet_jax.pretrained import inert_pickle
from cacenet_jax.pretrained.reading import read

ONES = np.ones((2, 3), np.float32)
OPEN, STORAGES = weights.state_dict({"a": ONES})
SEVERAL = {"a": ONES, "b.half": np.arange(5, dtype=np.float16), "c": np.array(7)}


@pytest.fixture
def bounded():
    """The test reserves less than 50 MiB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20, f"{peak >> 20} MiB"


def read_bytes(folder: Path, data: bytes, name: str = "a.pth") -> dict[str, np.ndarray]:
    (folder / name).write_bytes(data)
    return read(folder / name)


@pytest.mark.parametrize("name", ["model.pth.tar-60", "r18.pth.tar", "last.ckpt", "weights", "a.safetensors"])
def test_the_content_decides_the_format(tmp_path, name):
    for data in (
        weights.torch_zip(OPEN, STORAGES), weights.torch_legacy(OPEN, STORAGES), save({"a": ONES}),
        weights.torch_zip(weights.mapping({"state_dict": OPEN, "epoch": weights.value(60)}), STORAGES),
    ):  # fmt: skip
        arrays = read_bytes(tmp_path, data, name)
        assert list(arrays) == ["a"]
        np.testing.assert_array_equal(arrays["a"], ONES, strict=True)


def test_the_writer_of_these_tests_is_read_to_the_bit(tmp_path):
    content, storages = weights.state_dict(SEVERAL)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        arrays = read_bytes(tmp_path, weights.torch_zip(content, storages, compression))
        assert arrays.keys() == SEVERAL.keys()
        for name, x in SEVERAL.items():
            np.testing.assert_array_equal(arrays[name], x, strict=True)


# -- Nothing in a file runs --------------------------------------------------------------------------------------------


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


HARMFUL = [
    pickle.dumps({"a": Calls(os.mkdir, "harmed")}, protocol=2),
    pickle.dumps({"a": Calls(eval, "__import__('os').mkdir('harmed')")}, protocol=4),
    pickle.dumps({"state_dict": Calls(exec, "import os; os.mkdir('harmed')")}, protocol=0),
    b"(S'harmed'\nios\nmkdir\n.",  # INST
    b"(cos\nmkdir\nS'harmed'\no.",  # OBJ
    b"\x80\x02cos\nmkdir\nU\x06harmed\x85\x81.",  # NEWOBJ
    b"cbuiltins\ngetattr\n(cos\n__dict__\nVmkdir\ntRVharmed\n\x85R.",
]


@pytest.mark.parametrize("data", HARMFUL, ids=range(len(HARMFUL)))
def test_no_function_is_called(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/data.pkl", data)
    legacy = pickle.dumps(weights.MAGIC, 2) + pickle.dumps(weights.PROTOCOL, 2) + pickle.dumps({}, 2)
    for content in (archive.getvalue(), legacy + data + pickle.dumps([], 2)):
        with pytest.raises(UserError, match=r"a\.pth: found no arrays under names"):
            read_bytes(tmp_path, content)
    with pytest.raises(UserError, match=r"a\.pth: found a file that cannot be read"):
        read_bytes(tmp_path, data)
    assert not Path("harmed").exists()


def test_attributes_of_the_readers_own_functions_cannot_be_set(tmp_path):
    known = (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n")
    for function in known:
        content = function + b"}U\x05itemsK\x01s}U\x0c__defaults__K\x01s\x86b"
        with pytest.raises(UserError, match="no arrays under names"):
            read_bytes(tmp_path, weights.torch_zip(content, {}))
    assert OrderedDict([(1, 2)]).items() == {1: 2}.items()
    assert list(read_bytes(tmp_path, weights.torch_zip(OPEN, STORAGES))) == ["a"]


def test_arrays_beside_unknown_objects_are_read(tmp_path):
    items = {"args": b"cargparse\nNamespace\n)\x81}U\x02lrK\x01sb", "state_dict": OPEN}
    assert list(read_bytes(tmp_path, weights.torch_zip(weights.mapping(items), STORAGES))) == ["a"]


# -- Sizes are checked before memory is reserved -----------------------------------------------------------------------


def claims(shape, strides, count=6, offset=0):
    return weights.mapping({"a": weights.tensor("0", count, shape, strides, offset)})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (claims((1 << 36,), (0,)), "a tensor of 68719476736 numbers, of which the file has 6"),  # 256 GiB
        (claims((7,), (0,)), "a tensor of 7 numbers, of which the file has 6"),
        (claims((2, 3), (1 << 40, 1)), "a tensor that reaches past its numbers"),
        (claims((2, 3), (3, 1), offset=1), "a tensor that reaches past its numbers"),
        (claims((2, 3), (-3, 1)), "a tensor of impossible shape or strides"),
        (claims((1 << 63,), (1,)), "a tensor of impossible shape or strides"),
        (claims((10**400,), (1,)), "a tensor of impossible shape or strides"),
        (claims((2, 3), (1,)), "a tensor of 2 dimensions and 1 strides"),
        (claims((1,) * 100, (1,) * 100), "a tensor of 100 dimensions"),
    ],
)
def test_a_tensor_that_claims_more_than_the_file_is_told(tmp_path, bounded, content, told):
    for data in (weights.torch_zip(content, STORAGES), weights.torch_legacy(content, STORAGES)):
        with pytest.raises(UserError, match=rf"a\.pth: found a file that cannot be read \({told}"):
            read_bytes(tmp_path, data)


def test_a_storage_that_claims_more_than_the_file_is_told(tmp_path, bounded):
    data = bytearray(weights.torch_legacy(OPEN, STORAGES))
    data[-len(ONES.tobytes()) - 8 : -len(ONES.tobytes())] = (1 << 50).to_bytes(8, "little")
    with pytest.raises(UserError, match="the end in the middle of the numbers"):
        read_bytes(tmp_path, bytes(data))


def test_members_that_unpack_to_many_times_the_file_are_told(tmp_path):
    content = claims((25 << 20,), (1,), count=25 << 20)
    data = weights.torch_zip(content, {"0": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 1 << 20
    with pytest.raises(UserError, match=r"archive/data/0 of 100.0 MiB in a file of 0.1 MiB"):
        read_bytes(tmp_path, data)
    with pytest.raises(UserError, match=r"archive/data.pkl of 100.0 MiB in a file of 0.1 MiB"):
        read_bytes(tmp_path, weights.torch_zip(b"N" * (100 << 20), {}, zipfile.ZIP_DEFLATED))


def test_many_views_of_one_storage_are_bounded(tmp_path):
    storage = bytes(1 << 20)
    views = weights.mapping({f"a{i}": weights.tensor("0", 1 << 18, (1 << 18,), (1,)) for i in range(200)})
    with pytest.raises(UserError, match="tensors that take many times the size of the file"):
        read_bytes(tmp_path, weights.torch_zip(views, {"0": storage}))


@pytest.mark.parametrize(
    "operation",
    [
        b"r\xff\xff\xff\x7f",  # LONG_BINPUT: a place in the memo
        b"\x8e" + (1 << 37).to_bytes(8, "little"),  # BINBYTES8
        b"\x8d" + (1 << 37).to_bytes(8, "little"),  # BINUNICODE8
        b"\x96" + (1 << 37).to_bytes(8, "little"),  # BYTEARRAY8
        b"B\xff\xff\xff\xff",  # BINBYTES
        b"\x8b\xff\xff\xff\x7f",  # LONG4
    ],
)
def test_numbers_in_a_pickle_reserve_nothing(tmp_path, bounded, operation):
    for content in (b"N" + operation, b"N" + operation + b"0" + OPEN):
        try:
            read_bytes(tmp_path, weights.torch_zip(content, STORAGES))
        except UserError:
            continue
        assert operation[:1] == b"r"  # a place in the memo is only a number


# -- Deep, shared and self-referring pickles ---------------------------------------------------------------------------

DEPTH = 20_000
KEYED = b"}(" + b")" + b"\x85" * DEPTH + b"K\x01u"  # a tuple in a tuple ... as a key: its hash is recursive


@pytest.mark.parametrize(
    "content",
    [
        b"]" + b"]" * DEPTH + b"a" * DEPTH,
        b"}" + b"U\x05model}" * DEPTH + b"s" * DEPTH,
        KEYED,
        b")" + b"2\x86" * 100 + b"q\x000}(h\x00K\x01u",  # a tuple of 2^100 elements, as a key
        b"}q\x00U\x05modelh\x00s",  # a checkpoint in itself
        b"]q\x00h\x00a",
        b"]" + b"q\x000](h\x00h\x00e" * 60,  # a list of 2^60 elements
    ],
    ids=["lists", "models", "key", "shared key", "self", "list in itself", "shared"],
)
def test_nesting_needs_neither_recursion_nor_time(tmp_path, content):
    with pytest.raises(UserError, match="no arrays under names"):
        read_bytes(tmp_path, weights.torch_zip(content, {}))
    items = weights.mapping({"x": content, "state_dict": OPEN})
    assert list(read_bytes(tmp_path, weights.torch_zip(items, STORAGES))) == ["a"]


def test_a_pickle_of_endless_work_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPERATIONS", 10_000)
    copies = b"](" + b"N" * 1000 + b"e\x85q\x00" + b"0ccollections\nOrderedDict\nh\x00R" * 20
    for content in (b"N0" * 10_000 + b"N", copies):
        with pytest.raises(UserError, match="a pickle of more than 10,000 operations"):
            read_bytes(tmp_path, weights.torch_zip(content, {}))


@pytest.mark.parametrize("content", [b"0", b"t", b"R", b"Ns", b"h\x07", b"(((", b"\x82\x01", b"P1\n", b"a", b"2", b"b"])
def test_a_pickle_that_takes_what_it_did_not_give_is_told(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.pth: found a file that cannot be read \(a pickle|.*EXT1|.*PERSID"):
        read_bytes(tmp_path, weights.torch_zip(content, {}))


# -- safetensors, and other files --------------------------------------------------------------------------------------


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_floats_of_eight_bits_are_told(tmp_path, dtype):
    header = b'{"a":{"dtype":"%s","shape":[4],"data_offsets":[0,4]}}' % dtype.encode()
    with pytest.raises(
        UserError, match=rf"a\.safetensors: found a of type {dtype}, expected floats of 16 bits or more"
    ):
        read_bytes(tmp_path, safetensors(header, bytes(4)), "a.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        safetensors(b'{"a":{"dtype":"F32","shape":[68719476736],"data_offsets":[0,274877906944]}}', bytes(64)),
        safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,64]}}', bytes(64)),
        safetensors(b'{"a":' + b"[" * 100_000),
        struct.pack("<Q", 1 << 60) + b"{}",
        safetensors(b'{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
    ],
)
def test_a_false_header_is_told(tmp_path, bounded, data):
    with pytest.raises(UserError, match=r"a\.safetensors: found a file that cannot be read .* get it again"):
        read_bytes(tmp_path, data, "a.safetensors")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page.*download the file itself"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip archive.*unpack it"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive.*unpack it and name the file in it"),
    ],
)
def test_files_that_are_often_mistaken_for_weights_are_named(tmp_path, data, told):
    with pytest.raises(UserError, match=rf"model\.pth\.tar: found a file that cannot be read \({told}"):
        read_bytes(tmp_path, data, "model.pth.tar")
