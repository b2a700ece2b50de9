"""A file of weights as NumPy arrays, each under its name. Neither format needs PyTorch."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cacenet_jax.errors import UserError
from cacenet_jax.pretrained import torch_file

# Training scripts save weights beside epoch and optimiser under one of these.
_NESTED = ("state_dict", "model")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, under the names and in the layout that it has.

    Args:
        path: .safetensors, or what torch.save wrote: a state dict, perhaps under "state_dict" or "model". No code that the
            file names is run.

    Returns:
        Name to array; bfloat16 is widened to float32, other types are as they were.

    Raises:
        UserError: a broken file, or one that holds no arrays.
    """
    path = Path(path)
    arrays = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not arrays:
        raise UserError(
            f"{path}: found no arrays under names, expected a state dict; save that alone, or choose another file"
        )
    return {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in arrays.items()}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that NumPy does not have
        raise _broken(path, error, "a .safetensors file; get it again") from error


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        content = torch_file.load(path)
    # A pickle of something else fails in any of these ways.
    except (
        ValueError, TypeError, AttributeError, LookupError, EOFError, OSError, ImportError, MemoryError, UnicodeError,
        pickle.UnpicklingError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        remedy = (
            "get it again, or save it where PyTorch is: safetensors.torch.save_file(STATE_DICT, 'FILE.safetensors')"
        )
        raise _broken(path, error, f"what torch.save writes; {remedy}") from error
    while isinstance(content, Mapping) and (inner := [k for k in _NESTED if isinstance(content.get(k), Mapping)]):
        content = content[inner[0]]
    found = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in found if isinstance(value, np.ndarray)}


def _broken(path: Path, error: Exception, expected: str) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path}: found a file that cannot be read ({reason}), expected {expected}")
