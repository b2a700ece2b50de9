"""Hosted CI and pre-commit call what a developer calls."""

import re
import tomllib

import yaml
from command import ROOT


def test_hosted_ci_calls_the_two_commands():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["make"]
    matrix = job["strategy"]["matrix"]
    assert matrix["command"] == ["check", "test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make ${{ matrix.command }} PYTHON=python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"


def test_hooks_are_the_checks_of_the_makefile():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = {re.sub(r"^\.venv/bin/| --force-exclude$", "", hook["entry"]) for hook in repository["hooks"]}
    assert repository["repo"] == "local" and commands == {"ruff check", "ruff format --check"}
