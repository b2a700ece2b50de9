"""Weights as torch.save writes them, assembled from the opcodes of a pickle, so that they may also say what is not true."""

import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def value(x: object) -> bytes:
    """The opcodes of a string or number."""
    return pickle.dumps(x, protocol=2)[2:-1]  # without PROTO and STOP


def sequence(*parts: bytes) -> bytes:
    """The opcodes of a tuple."""
    return b"(" + b"".join(parts) + b"t"


def mapping(items: Mapping[str, bytes]) -> bytes:
    """The opcodes of an OrderedDict."""
    return ORDERED_DICT + b"(" + b"".join(value(name) + item for name, item in items.items()) + b"u"


def tensor(
    key: str, count: int, shape: Sequence[int], strides: Sequence[int], offset: int = 0, kind: str = "FloatStorage"
) -> bytes:
    """The opcodes of a tensor that is a view of a storage with `count` numbers."""
    storage = sequence(
        value("storage"), b"ctorch\n" + kind.encode() + b"\n", value(key), value("cpu"), value(count)
    )  # fmt: skip
    integers = lambda numbers: sequence(*map(value, numbers))
    args = sequence(storage + b"Q", value(offset), integers(shape), integers(strides), b"\x89", ORDERED_DICT)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R"


def pickled(content: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + content + b"."


def state_dict(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """The opcodes of a state dict and the bytes of its storages by key."""
    items, storages = {}, {}
    for i, (name, x) in enumerate(arrays.items()):
        strides = [step // x.itemsize for step in x.strides]
        items[name] = tensor(str(i), x.size, x.shape, strides, kind=KINDS[x.dtype.name])
        storages[str(i)] = x.tobytes()
    return mapping(items), storages


def torch_zip(content: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of PyTorch 1.6 and later."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(content))
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def torch_legacy(content: bytes, storages: Mapping[str, bytes], itemsize: int = 4) -> bytes:
    """A file of PyTorch 1.5 and earlier; all storages have elements of one size."""
    head = [MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True}]
    parts = [pickle.dumps(x, protocol=2) for x in head] + [pickled(content), pickle.dumps([*storages], protocol=2)]
    for data in storages.values():
        parts += [(len(data) // itemsize).to_bytes(8, "little"), data]
    return b"".join(parts)
