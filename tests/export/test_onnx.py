"""The conversion to ONNX: what it needs, what it refuses, and, where its environment is, what it gives."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from command import ROOT
from export_reader import read_as_a_user, readers

from cacenet_jax.errors import UserError
from cacenet_jax.export import onnx

# An interpreter of requirements-onnx.txt; by default the one that runs the tests, where it has the packages.
PYTHON = os.environ.get("CACENET_ONNX_PYTHON") or (sys.executable if find_spec("jax2onnx") else None)
needs_onnx = pytest.mark.skipif(
    PYTHON is None,
    reason="needs jax2onnx and onnxruntime: set CACENET_ONNX_PYTHON to the python of requirements-onnx.txt",
)


def test_the_conversion_imports_nothing_that_reads_data_or_checkpoints():
    code = (
        "import sys, cacenet_jax.export.onnx\n"
        "found = {m.split('.')[0] for m in sys.modules} & {'orbax', 'tensorflow_datasets', 'grain', 'cv2', 'array_record'}\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    assert onnx.main([]) == 2
    assert "found 0 arguments, expected the folder of an export" in capsys.readouterr().err
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert onnx.main([str(tmp_path)]) == 2
    assert "found an environment without onnxruntime, expected that of requirements-onnx.txt" in capsys.readouterr().err
    monkeypatch.setattr(onnx, "find_spec", lambda name: name)
    assert onnx.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "manifest.json: found no manifest" in error and len(error.splitlines()) == 1
    (tmp_path / "manifest.json").write_text('{"format": 1, "files": {}, "dtype": "bfloat16"}')
    with pytest.raises(UserError, match=r"computes in bfloat16, expected float32.*--config.model.dtype=float32"):
        onnx.convert(tmp_path)


@needs_onnx
@pytest.mark.slow
def test_onnx_files_give_what_the_model_gives_and_the_readme_reads_them(exported, tmp_path):
    folder = exported[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    convert = [PYTHON, "-m", "cacenet_jax.export.onnx", str(folder)]
    done = subprocess.run(convert, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "extractor.onnx: " in done.stdout and "pair_scorer.onnx: " in done.stdout and not done.stderr
    made = {path.name for path in folder.iterdir()} - set(before)
    assert made == {"extractor.onnx", "pair_scorer.onnx"}
    head = readers()[0].split("load = ")[0].replace("import jax.export\n", "")
    found = read_as_a_user(PYTHON, head + readers()[1], exported, tmp_path)
    assert max(found.values()) < 2e-6, found

    # A check that fails leaves the files as they were.
    (folder / "manifest.json").write_bytes(before["manifest.json"])
    onnx_before = {name: (folder / name).read_bytes() for name in made}
    code = "from cacenet_jax.export import check, onnx; check.BOUNDS['float32'] = 0; sys.exit(onnx.main(sys.argv[1:]))"
    done = subprocess.run(
        [PYTHON, "-c", "import sys; " + code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "expected at most 0e+00; nothing was written" in done.stderr
    assert {name: (folder / name).read_bytes() for name in made} == onnx_before
    assert (folder / "manifest.json").read_bytes() == before["manifest.json"]
    for name in made:
        (folder / name).unlink()
