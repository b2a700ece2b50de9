"""A file of weights as NumPy arrays, each under its name: .safetensors without PyTorch, PyTorch's own files with it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cacenet_jax.errors import UserError

# Training scripts save weights beside epoch and optimiser under one of these.
_NESTED = ("state_dict", "model")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, under the names and in the layout that it has.

    Args:
        path: .safetensors, or .pth, .pt, .bin, which need PyTorch and are read without running code that they hold.

    Returns:
        Name to array; bfloat16 is widened to float32, other types are as they were.

    Raises:
        UserError: a broken file, one that holds no arrays, or PyTorch is needed and absent.
    """
    path = Path(path)
    arrays = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not arrays:
        raise UserError(f"{path}: found no arrays, expected weights under their names; choose another file")
    return arrays


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that NumPy does not have
        raise _broken(path, error, "a .safetensors file") from error
    return {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in arrays.items()}


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: found a file of PyTorch, expected PyTorch to read it; run 'pip install torch', or convert it where "
            "PyTorch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'FILE.safetensors')"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: found more than weights, expected a state dict (torch.load(weights_only=True) refuses the rest); "
            "save its state dict alone, as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _broken(path, error, "a file of PyTorch") from error
    while isinstance(content, Mapping) and (inner := [k for k in _NESTED if isinstance(content.get(k), Mapping)]):
        content = content[inner[0]]
    content = content if isinstance(content, Mapping) else {}

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return {str(name): array(value) for name, value in content.items() if isinstance(value, torch.Tensor)}


def _broken(path: Path, error: Exception, expected: str) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path}: found a file that cannot be read ({reason}), expected {expected}; get it again")
