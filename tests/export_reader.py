"""The readers of an export in docs/export.md, run as a user runs them: in a process of their own, without this package."""

import os
import subprocess

import cv2
import documents
import jax
import numpy as np

# What a reader's process must not hold.
UNIMPORTED = "import sys; assert not [m for m in sys.modules if m.split('.')[0] == 'cacenet_jax']\n"


def readers():
    """The Python of docs/export.md: with jax, then with ONNX Runtime."""
    return [block.code for block in documents.blocks(documents.ROOT / "docs/export.md")]


def read_as_a_user(python, code, exported, tmp_path):
    """Runs a reader on images on disk; gives its distances beside the model's."""
    folder, _, model = exported
    workdirs = tmp_path / "workdirs/synthetic"
    (tmp_path / "gallery").mkdir()
    workdirs.mkdir(parents=True)
    (workdirs / "export").symlink_to(folder)
    images = np.random.default_rng(3).integers(0, 256, (5, *model.image), np.uint8)
    for number, image in enumerate(images):
        path = tmp_path / ("gallery" if number else ".") / (f"{number}.png" if number else "query.png")
        cv2.imwrite(str(path), image[..., ::-1])
    code = code.replace('gallery.pop("embedding") @', '(embedding := gallery.pop("embedding")) @')
    code += UNIMPORTED + 'np.savez("found.npz", embedding=embedding, individual=individual, pair=pair)\n'
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = jax.device_get(jax.jit(model.extractor)(images))
    embedding = expected.pop("embedding")
    query, candidates = {name: x[0] for name, x in expected.items()}, {name: x[1:] for name, x in expected.items()}
    pair = jax.jit(model.pair_scorer)(query, candidates)
    expected = {"embedding": embedding[1:], "individual": 1 - embedding[1:] @ embedding[0], "pair": pair}
    with np.load(tmp_path / "found.npz") as found:
        return {name: np.abs(found[name] - expected[name]).max() for name in expected}
