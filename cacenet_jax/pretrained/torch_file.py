"""Reader for PyTorch files that does not require PyTorch and executes no code referenced in the file.

A file consists of a pickle and the bytes of its tensors, in a zip archive since PyTorch 1.6 and concatenated before.
Checkpoints that also contain a scheduler, NumPy scalars or an argparse namespace can be read; see `inert_pickle`. Sizes
in a file are compared with the size of the file before any memory is reserved for them.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cacenet_jax.pretrained import inert_pickle
from cacenet_jax.pretrained.inert_pickle import Record, Symbol

_MAGIC = 0x1950A86A20F9469CFC6C  # magic number of files written before PyTorch 1.6
_PROTOCOL = 1001
_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
    "BFloat16Storage": jnp.bfloat16,
}  # fmt: skip
# Keys under which training scripts store the state dict in a checkpoint; they may be nested.
_NESTED = ("state_dict", "model", "model_state_dict")
_MAX_DEPTH = 8
_PICKLE_BYTES = 64 << 20  # a pickle holds names and shapes; those of large networks have less than one MiB
# The arrays of a file, and the members of an archive, may take this many times its size, and 64 MiB in any case.
_MAX_RATIO, _ALWAYS_ALLOWED = 8, 64 << 20
_MAX_DIMENSIONS = 32


class _Storage(NamedTuple):
    """Flat buffer that tensors are views of."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """View of a storage; offset and strides are in elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(path: Path) -> dict[str, np.ndarray]:
    """Load the state dict in a file written by torch.save.

    Args:
        path: file in the format of PyTorch 0.4 or later, except TorchScript.

    Returns:
        Arrays by name, of the file itself or of its entry "state_dict", "model" or "model_state_dict". They may be
        read-only, and share memory.

    Raises:
        ValueError, OSError: the format is not supported, the file is broken, or NumPy lacks the dtype of a tensor.
    """
    allowed = _ALWAYS_ALLOWED + _MAX_RATIO * path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            return _load_zip(path, allowed)
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile: BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, ...
        raise ValueError(str(error) or type(error).__name__) from error
    return _load_legacy(path, allowed)


def _load_zip(path: Path, allowed: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        names = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1 or any(name.endswith("/constants.pkl") for name in members):
            raise ValueError("an archive of another kind, such as TorchScript")
        folder = names[0].rpartition("/")[0]
        folder = f"{folder}/" if folder else ""

        def read(name: str, limit: int) -> bytes:
            if name not in members:
                raise ValueError(f"an archive without {name}")
            info = members[name]
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} in a compression that torch.save does not use")
            if info.file_size > limit:
                raise ValueError(f"{name} of {_mib(info.file_size)} MiB in a file of {_mib(path.stat().st_size)} MiB")
            return archive.read(info)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder", 64) != b"little":
            raise ValueError("numbers whose first byte is the highest")
        pickle = _Pickle()
        tensors = _state_dict(pickle.load(io.BytesIO(read(names[0], min(allowed, _PICKLE_BYTES)))))
        used = {tensor.storage.key for tensor in tensors.values()}
        data: dict[str, bytes] = {}
        for key in used:
            data[key] = read(f"{folder}data/{key}", allowed - sum(map(len, data.values())))
    return _arrays(tensors, lambda key: data[key], allowed)


def _load_legacy(path: Path, allowed: int) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        # A BytesIO does not reserve memory for a number of bytes that the file only claims to have.
        head = io.BytesIO(file.read(min(path.stat().st_size, _PICKLE_BYTES)))
        pickle = _Pickle()
        if pickle.load(head) != _MAGIC or pickle.load(head) != _PROTOCOL:
            raise ValueError("a pickle of another kind")
        system = pickle.load(head)
        if not isinstance(system, Mapping) or not system.get("little_endian", True):
            raise ValueError("numbers whose first byte is the highest")
        tensors = _state_dict(pickle.load(head))
        used = {tensor.storage.key for tensor in tensors.values()}
        keys = pickle.load(head)
        if not isinstance(keys, list):
            raise ValueError("a file without a list of storages")
        file.seek(head.tell())
        data: dict[str, bytes] = {}
        for key in keys:
            if not isinstance(key, str) or key not in pickle.storages:
                raise ValueError("a storage that no tensor uses")
            block = _counted(file, pickle.storages[key].dtype.itemsize, path.stat().st_size, key in used)
            data[key] = block
    return _arrays(tensors, lambda key: data[key], allowed)


def _counted(file: IO[bytes], itemsize: int, file_size: int, used: bool) -> bytes:
    """Read a number of elements and these elements, or skip them if they are not used."""
    header = file.read(8)
    count = int.from_bytes(header, "little", signed=True)
    size = count * itemsize
    if len(header) != 8 or count < 0 or file.tell() + size > file_size:
        raise ValueError("the end in the middle of the numbers")
    if used:
        return file.read(size)
    file.seek(size, io.SEEK_CUR)
    return b""


class _Pickle:
    """Reader of the pickles in one file, which collects the storages that they name."""

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}

    def load(self, file: io.BytesIO) -> Any:
        return inert_pickle.load(file, self._reduce, self._storage)

    def _storage(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError("a storage of another kind")
        _, symbol, key, _, _, *view = pid
        if view and view[0] is not None:
            raise ValueError("storages that are views of one another")
        if not isinstance(symbol, Symbol) or symbol.module != "torch" or symbol.name not in _TYPES:
            name = symbol.name if isinstance(symbol, Symbol) else type(symbol).__name__
            raise ValueError(f"numbers of the type {name[:80]}")
        if not isinstance(key, str):
            raise ValueError("a storage without a name")
        return self.storages.setdefault(key, _Storage(key, np.dtype(_TYPES[symbol.name])))

    def _reduce(self, symbol: Symbol, args: tuple[Any, ...]) -> Any:
        """Return the object of a call; calls that no array needs give an empty record."""
        match symbol, args:
            case Symbol("collections", "OrderedDict"), (list() | tuple() as items,):
                pairs = [pair for pair in items if isinstance(pair, list | tuple) and len(pair) == 2]
                return Record((pair[0], pair[1]) for pair in pairs if isinstance(pair[0], str))
            case Symbol("torch", "Size"), (list() | tuple() as sizes,):
                return tuple(sizes)
            case Symbol("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), (
                storage,
                offset,
                shape,
                strides,
                *_,
            ):
                return _tensor(storage, offset, shape, strides)
            case Symbol("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), (tensor, *_):
                return tensor
            case Symbol("torch._tensor", "_rebuild_from_type_v2"), (Symbol() as inner, _, tuple() as inner_args, *_):
                is_itself = inner.name == "_rebuild_from_type_v2"
                return Record() if is_itself else self._reduce(inner, inner_args)
        return Record()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without its numbers")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    numbers = (offset, *shape, *strides)
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor of impossible shape or strides")
    return _Tensor(storage, offset, shape, strides)


def _state_dict(content: Any) -> dict[str, _Tensor]:
    """Return the tensors of a state dict, which may be nested in a checkpoint or in itself."""
    for _ in range(_MAX_DEPTH):
        inner = [key for key in _NESTED if isinstance(content, Record) and isinstance(content.get(key), Record)]
        if not inner:
            break
        content = content[inner[0]]
    items = content.items() if isinstance(content, Record) else ()
    return {name: value for name, value in items if isinstance(value, _Tensor)}


def _arrays(tensors: Mapping[str, _Tensor], read: Callable[[str], bytes], allowed: int) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in tensors.items():
        arrays[name] = _array(tensor, read(tensor.storage.key))
        allowed -= arrays[name].nbytes
        if allowed < 0:
            raise ValueError("tensors that take many times the size of the file")
    return arrays


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
    """View the bytes of a storage as an array."""
    itemsize = tensor.storage.dtype.itemsize
    numbers = np.frombuffer(data, tensor.storage.dtype, len(data) // itemsize)
    count = math.prod(tensor.shape)
    if not count:
        return np.zeros(tensor.shape, numbers.dtype)
    if count > len(numbers):
        raise ValueError(f"a tensor of {count} numbers, of which the file has {len(numbers)}")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if last >= len(numbers):
        raise ValueError("a tensor that reaches past its numbers")
    # The stride of an axis of one element has no effect, but may be too large for NumPy.
    strides = [step * itemsize if n > 1 else itemsize for n, step in zip(tensor.shape, tensor.strides, strict=True)]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
