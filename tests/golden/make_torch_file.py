"""Small files as torch.save writes them, in its two formats, with what training scripts put into them.

Run `python tests/golden/make_torch_file.py` with PyTorch (2.13.0, CPU) to write torch_file_zip.pth and torch_file_legacy.pth
beside this file. The values are those of `arrays`, which needs NumPy alone.
"""

import argparse
from pathlib import Path

import numpy as np

PATHS = [Path(__file__).with_name(f"torch_file_{kind}.pth") for kind in ("zip", "legacy")]


def arrays() -> dict[str, np.ndarray]:
    """Name to value; bfloat16 has eight significant bits, which these numbers do not exceed."""
    base = np.arange(24, dtype=np.float32)
    return {
        "conv.weight": (base - 7.3).reshape(2, 3, 2, 2),
        "view": base.reshape(4, 6)[1:, ::2].T,
        "part": base[3:7],
        "half": (base[:6] / 3).astype(np.float16).reshape(2, 3),
        "bfloat16": base[:6].reshape(3, 2) / 4,
        "double": np.array([[1 / 3]]),
        "bn.num_batches_tracked": np.array(5),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


def main() -> None:
    """Write a checkpoint of a training in both formats."""
    import torch

    base = torch.arange(24.0)
    state = {name: torch.from_numpy(np.array(value)) for name, value in arrays().items()}
    state["view"], state["part"] = base.view(4, 6)[1:, ::2].t(), base[3:7]  # of one storage, one of them transposed
    state["bfloat16"] = state["bfloat16"].bfloat16()
    state["conv.weight"] = torch.nn.Parameter(state["conv.weight"])
    checkpoint = {
        "epoch": 3,
        "state_dict": state,
        "best": np.float64(0.3),  # what torch.load(weights_only=True) refuses
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {0: {"momentum": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    for path, is_zip in zip(PATHS, (True, False), strict=True):
        torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)


if __name__ == "__main__":
    main()
