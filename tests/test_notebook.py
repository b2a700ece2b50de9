"""The notebook: what is committed is whole and shows what it promises; its short form runs from top to bottom."""

import ast
import base64
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import cv2
import nbformat
import numpy as np
import pytest
from command import PATIENCE, ROOT
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

PATH = ROOT / "notebooks/cacenet_colab.ipynb"
SHORT = {
    "CONFIG": "tests/configs/tiny.py",
    "FIELDS": {"epochs": 2, "eval.pairs_per_call": 512, "visualize.num_queries": 1, "visualize.ranks": 3},
    "QUERY": 1,
}
PICTURES = ("figure6", "figure4", "figure5", "list")  # cells that show one


def read():
    return nbformat.read(PATH, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(cell) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(cell.source))


def outputs(cell):
    """Text and pictures of a cell; an error among its outputs fails the test."""
    text, pictures = "", []
    for output in cell.outputs:
        assert output.output_type in ("stream", "display_data", "execute_result"), output
        text += output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        if "image/png" in output.get("data", {}):
            data = np.frombuffer(base64.b64decode(output.data["image/png"]), np.uint8)
            pictures.append(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return text, pictures


def check_outputs(notebook):
    """What every run of the notebook shows: the backend, the table and four pictures."""
    found = {cell.id: outputs(cell) for cell in code(notebook)}
    assert re.search(r"jax \d+\.\d+\S* on (cpu|gpu|tpu): \[", found["backend"][0])
    rankings = re.findall(r"^(\w+) +(\d+\.\d\d) +(\d+\.\d\d)", found["table"][0], re.MULTILINE)
    assert [ranking[0] for ranking in rankings] == ["individual", "conditional", "mixed"]
    assert "".join(found["table"][0].split()) in "".join(found["train"][0].split())  # the run's own table
    shown = {name: [picture.shape for picture in pictures] for name, (_, pictures) in found.items() if pictures}
    assert list(shown) == list(PICTURES)
    for (height, width, _), *more in shown.values():
        assert not more and 100 < height < 1200 and 200 < width < 1200


def test_committed_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert PATH.stat().st_size < 2.5e6
    cells = code(notebook)
    # Run once from top to bottom in a fresh kernel.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    check_outputs(notebook)
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]  # progress
    # Nobody's folders or machine; the Drive of a Colab is where the text says to put data.
    words = " ".join([cell.source for cell in notebook.cells] + [outputs(cell)[0] for cell in cells])
    paths = re.findall(r"(?<![\w.:/~])(?:/[\w.-]+){2,}|[A-Z]:\\\S+|file:\S+", words.replace("/content/drive", ""))
    assert [path for path in paths if not path.startswith("/MyDrive")] == []


def test_every_name_exists():
    """Each cell compiles; what it imports from this project, and what it calls of that, is there."""
    notebook = read()
    names, calls = {}, 0
    for cell in code(notebook):
        module = tree(cell)
        compile(module, cell.id, "exec")
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("cacenet_jax"):
                parent = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(parent, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    names[alias.asname or alias.name] = getattr(parent, alias.name)
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert hasattr(names[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
                calls += 1
    assert {"train", "visualize", "table", "rank", "ranked_list"} <= names.keys() and calls >= 2
    for file in re.findall(r"configs/\w+\.py", " ".join(cell.source for cell in notebook.cells)):
        assert (ROOT / file).is_file(), file


def test_a_failing_command_stops_the_notebook(capsys):
    (function,) = (node for cell in code(read()) for node in tree(cell).body if isinstance(node, ast.FunctionDef))
    names = {"subprocess": subprocess}
    exec(compile(ast.Module([function], []), "install", "exec"), names)
    with pytest.raises(RuntimeError, match="exit code 3"):
        names["run"](sys.executable, "-c", "print('its output'); raise SystemExit(3)")
    assert capsys.readouterr().out == "its output\n"
    lines = [line for cell in read().cells for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("!", "%"))]  # IPython goes on after a failure


class FakePip:
    """Stands for pip and for what is installed; refuses constraints on a jax below the floor."""

    def __init__(self, packages, floor="0.10.2"):
        self.packages, self.floor, self.calls = dict(packages), floor, []

    def version(self, name):
        if name not in self.packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.packages[name]

    def run(self, words, **how):
        kept = Path(words[words.index("--constraint") + 1]).read_text().split() if "--constraint" in words else []
        self.calls.append((kept, [word for word in words if word.startswith("jax[")]))
        assert words[:4] == [sys.executable, "-m", "pip", "install"] and str(ROOT / "requirements.txt") in words
        assert not {"-U", "--upgrade", "--force-reinstall"} & set(words)
        number = lambda text: [int(part) for part in text.split(".")]
        if any(line.startswith("jax==") and number(line[5:]) < number(self.floor) for line in kept):
            return subprocess.CompletedProcess(words, 1)
        if not kept:  # as the newest flax does
            self.packages["jax"] = "0.12.0"
        return subprocess.CompletedProcess(words, 0)


KEPT = ["jax==0.11.0", "jaxlib==0.11.0"]
OLD = {"jax": "0.9.0", "jaxlib": "0.9.0"}
CASES = {
    "it serves": ({"jax": "0.11.0", "jaxlib": "0.11.0", "jax-cuda12-plugin": "0.11.0"}, [(KEPT, [])], "0.11.0: kept"),
    "none": ({}, [([], [])], "0.12.0: installed"),
    "too old": (OLD, [(["jax==0.9.0", "jaxlib==0.9.0"], []), ([], [])], "0.12.0: installed instead of 0.9.0"),
    "too old, with its plugin": (
        OLD | {"jax-cuda12-plugin": "0.9.0"},
        [(["jax==0.9.0", "jaxlib==0.9.0"], []), ([], ["jax[cuda12]"])],
        "0.12.0: installed instead of 0.9.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_installed_jax_stays_where_it_serves(case, monkeypatch, capsys):
    packages, calls, said = CASES[case]
    install = run_path(str(PATH.with_name("install.py")))
    pip = FakePip(packages)
    monkeypatch.setattr(importlib.metadata, "version", pip.version)
    monkeypatch.setattr(subprocess, "run", pip.run)
    assert install["main"]() == 0
    assert pip.calls == calls
    assert capsys.readouterr().out == f"jax {said}\n"


def test_requirements_are_floors():
    """A pin or a limit above would replace what is installed."""
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w-]+>=[\d.]+", line.partition("#")[0].strip()), line


@pytest.mark.slow
def test_short_form_runs(tmp_path, monkeypatch, request):
    notebook = read()
    settings = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    known = {target.id for node in tree(notebook.cells[settings]).body for target in node.targets}
    short = SHORT | {"WORKDIR": str(tmp_path / "run")}
    short["FIELDS"] = SHORT["FIELDS"] | {"data.dir": str(tmp_path / "prepared")}
    assert short.keys() <= known
    source = "\n".join(f"{name} = {value!r}" for name, value in short.items())
    notebook.cells.insert(settings + 1, new_code_cell(source, id="short"))
    for cell in code(notebook):
        cell.outputs = []
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(request.config.cache.mkdir("xla")),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PIP_NO_INDEX": "1",  # nothing is installed by a test
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # In the folder of the notebook, as Jupyter runs it.
    NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": PATH.parent}}
    ).execute()
    check_outputs(notebook)
    assert (tmp_path / "run/figures/report.html").is_file() and Path(tmp_path / "prepared").is_dir()
