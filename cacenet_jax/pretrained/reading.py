"""Reading of weight files (.safetensors, PyTorch) into named NumPy arrays, without PyTorch."""

from pathlib import Path

import numpy as np

from cacenet_jax.errors import UserError, printable
from cacenet_jax.pretrained import torch_file
from cacenet_jax.pretrained.matching import NAME_LENGTH

# First bytes of files that are often saved or downloaded in place of weights.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x89HDF": "an HDF5 file; weights of Keras are not read",
}
_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_TAR = (257, b"ustar")  # offset and bytes of the mark of a tar archive
_REMEDY = "get it again, or save it where PyTorch is: safetensors.torch.save_file(STATE_DICT, 'FILE.safetensors')"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays in a file, keeping names and layouts.

    The content decides the format: names such as `model.pth.tar-60` and `last.ckpt` say nothing about it.

    Args:
        path: a safetensors file, or a state dict written by torch.save, possibly under "state_dict", "model" or
            "model_state_dict". No code referenced in the file is executed.

    Returns:
        Arrays by name; bfloat16 is converted to float32, other dtypes are kept. They may be read-only.

    Raises:
        UserError: the file is broken or contains no arrays.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        arrays = _safetensors(path) if head[8:9] == b"{" else _torch(path, head)
    except (OSError, MemoryError) as error:
        raise _broken(path, error, f"a safetensors file or what torch.save writes; {_REMEDY}") from error
    if not arrays:
        raise UserError(
            f"{path}: found no arrays under names, expected a state dict; save that alone, or choose another file"
        )
    return {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in arrays.items()}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    expected = "a complete safetensors file; get it again"
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _SAFETENSORS_TYPES:
                    shown = printable(name, NAME_LENGTH)
                    raise UserError(
                        f"{path}: found {shown} of type {dtype}, expected floats of 16 bits or more; save the state dict "
                        "after .float()"
                    )
            return file.get_tensors()
    except SafetensorError as error:
        raise _broken(path, error, expected) from error


def _torch(path: Path, head: bytes) -> dict[str, np.ndarray]:
    others = [words for start, words in _OTHERS.items() if head.startswith(start)]
    if head[_TAR[0] :].startswith(_TAR[1]):
        others.append("a tar archive; unpack it and name the file in it")
    if others:
        kind, remedy = others[0].split("; ")
        raise _broken(path, ValueError(kind), f"a safetensors file or what torch.save writes; {remedy}")
    try:
        return torch_file.load(path)
    except ValueError as error:
        raise _broken(path, error, f"a safetensors file or what torch.save writes; {_REMEDY}") from error


def _broken(path: Path, error: Exception, expected: str) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path}: found a file that cannot be read ({printable(reason, 300)}), expected {expected}")
