"""Reader for PyTorch files that does not require PyTorch and executes no code referenced in the file.

A file consists of a pickle and the bytes of its tensors, in a zip archive since PyTorch 1.6 and concatenated before. A
pickle can call any function by name. Here, every name maps to an inert class unless it is needed to rebuild tensors.
Checkpoints that also contain a scheduler, NumPy scalars or an argparse namespace can therefore be read.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # magic number of files written before PyTorch 1.6
_PROTOCOL = 1001
_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
    "BFloat16Storage": jnp.bfloat16,
}  # fmt: skip


class _Storage(NamedTuple):
    """Flat buffer that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """View of a storage; offset and strides are in elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """Inert stand-in for classes and functions that are not needed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class _StorageType(NamedTuple):
    """Stand-in for torch.FloatStorage and the other storage classes."""

    name: str


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return _StorageType(name)
        return _KNOWN.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or (view and view[0] is not None):
            raise ValueError("storages that are views of one another")
        if not isinstance(storage, _StorageType) or storage.name not in _TYPES:
            raise ValueError(f"numbers of the type {getattr(storage, 'name', storage)}")
        return _Storage(str(key), np.dtype(_TYPES[storage.name]), int(count))


def load(path: Path) -> Any:
    """Load a file written by torch.save, with NumPy arrays in place of tensors.

    Args:
        path: file in the format of PyTorch 0.4 or later, except TorchScript.

    Returns:
        Dictionaries, lists, numbers and strings as saved. All other objects are replaced by inert stand-ins.

    Raises:
        ValueError, pickle.UnpicklingError, EOFError, KeyError, OSError, zipfile.BadZipFile and others: the format is
            not supported, the file is broken, or NumPy lacks the dtype of a tensor.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(names) != 1 or any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError("an archive of another kind, such as TorchScript")
            folder = names[0].rpartition("/")[0]
            folder = f"{folder}/" if folder else ""
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("numbers whose first byte is the highest")
            with archive.open(names[0]) as file:
                content = _Unpickler(file).load()
            return _with_arrays(content, lambda storage: archive.read(f"{folder}data/{storage.key}"))
    with path.open("rb") as file:
        if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
            raise ValueError("a pickle of another kind")
        if not _Unpickler(file).load().get("little_endian", True):
            raise ValueError("numbers whose first byte is the highest")
        content = _Unpickler(file).load()
        keys = _Unpickler(file).load()
        storages = _storages(content)
        data = {str(key): _read_counted(file, storages.get(str(key))) for key in keys}
    return _with_arrays(content, lambda storage: data[storage.key])


def _storages(content: Any) -> dict[str, _Storage]:
    """Collect the storages of all tensors by key."""
    if isinstance(content, _Tensor):
        return {content.storage.key: content.storage}
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return {key: storage for part in parts for key, storage in _storages(part).items()}


def _read_counted(file: IO[bytes], storage: _Storage | None) -> bytes:
    if storage is None:  # no reachable tensor uses it, so its dtype is unknown
        raise ValueError("tensors outside dictionaries and lists")
    count = int.from_bytes(file.read(8), "little", signed=True)
    size = count * storage.dtype.itemsize
    data = file.read(size) if count >= 0 else b""
    if count < 0 or len(data) != size:
        raise EOFError("the end in the middle of the numbers")
    return data


def _with_arrays(content: Any, read: Callable[[_Storage], bytes]) -> Any:
    """Replace each tensor in the content with an array."""
    if isinstance(content, _Tensor):
        return _array(content, read(content.storage))
    if isinstance(content, dict):
        return {key: _with_arrays(value, read) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_arrays(value, read) for value in content]
    return content


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
    numbers = np.frombuffer(data, tensor.storage.dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or last >= len(numbers):
        raise ValueError("a tensor that reaches past its numbers")
    strides = [step * numbers.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides).copy()
