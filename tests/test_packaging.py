"""The package as it is installed: what a wheel holds, what `import cacenet_jax` costs, and where the version is stated."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata

import pytest
from command import ROOT

import cacenet_jax

SETUPTOOLS = 77  # pyproject.toml needs it


def setuptools_version() -> int:
    try:
        return int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, built without network."""
    if setuptools_version() < SETUPTOOLS:
        pytest.skip(f"needs setuptools>={SETUPTOOLS} to build a wheel without network: requirements-dev.txt")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("cacenet_jax", "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.toml", "*.py", "*.md", "*.txt", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as files:
        yield files


def test_a_wheel_holds_the_package_and_its_configs_alone(wheel):
    info = f"cacenet_jax-{cacenet_jax.__version__}.dist-info/"
    found = {name for name in wheel.namelist() if not name.startswith(info)}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cacenet_jax").rglob("*.py")}
    configs = {f"cacenet_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert found == package | configs | {"cacenet_jax/py.typed"}
    assert f"{info}licenses/LICENSE" in wheel.namelist()
    assert "cacenet = cacenet_jax.main:main" in wheel.read(f"{info}entry_points.txt").decode()


def test_its_metadata_is_that_of_the_package_and_of_the_requirements_files(wheel):
    found = message_from_bytes(wheel.read(f"cacenet_jax-{cacenet_jax.__version__}.dist-info/METADATA"))
    assert found["Version"] == cacenet_jax.__version__ and found["License-Expression"] == "Apache-2.0"
    assert set(found.get_all("Provides-Extra")) == {"lite", "hub", "onnx", "index", "app", "dev"}
    required = [line.split("; extra == ") for line in found.get_all("Requires-Dist")]
    files = {
        "": "",
        "lite": "-lite",
        "hub": "-pretrained",
        "onnx": "-onnxruntime",
        "index": "-index",
        "app": "-app",
        "dev": "-dev",
    }
    for extra, suffix in files.items():
        lines = (ROOT / f"requirements{suffix}.txt").read_text().splitlines()
        expected = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
        assert [name for name, *of in required if of == ([f'"{extra}"'] if extra else [])] == expected, extra
    of = lambda extra: {name for name, *extras in required if extras == [f'"{extra}"']}
    assert of("index") < of("app")


def test_the_version_is_stated_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cacenet_jax.__version__"}
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{cacenet_jax.__version__}]" in text or f"will be {cacenet_jax.__version__}" in text


def test_importing_the_package_imports_little_and_its_names_come_when_asked_for():
    code = (
        "import sys, cacenet_jax as cace\n"
        "assert not {'jax', 'numpy', 'flax', 'cv2'} & set(sys.modules)\n"
        "assert set(cace.__all__) <= set(dir(cace)) and not hasattr(cace, 'nothing')\n"
        "from cacenet_jax import Retriever, evaluate_ranking, load\n"
        "assert cace.load is load and callable(load) and callable(evaluate_ranking) and isinstance(Retriever, type)\n"
        "assert not {'orbax', 'tensorflow_datasets', 'grain', 'array_record'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
