"""Reading of weight files (.safetensors, PyTorch) into named NumPy arrays, without PyTorch."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cacenet_jax.errors import UserError
from cacenet_jax.pretrained import torch_file

# Keys under which training scripts store the state dict in a checkpoint.
_NESTED = ("state_dict", "model")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays in a file, keeping names and layouts.

    Args:
        path: a .safetensors file, or a state dict written by torch.save, possibly under "state_dict" or "model". No
            code referenced in the file is executed.

    Returns:
        Arrays by name; bfloat16 is converted to float32, other dtypes are kept.

    Raises:
        UserError: the file is broken or contains no arrays.
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
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype that NumPy lacks
        raise _broken(path, error, "a .safetensors file; get it again") from error


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        content = torch_file.load(path)
    # Unpickling other content can fail in any of these ways.
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
    items = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, np.ndarray)}


def _broken(path: Path, error: Exception, expected: str) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path}: found a file that cannot be read ({reason}), expected {expected}")
