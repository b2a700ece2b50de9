"""The documentation site builds without a warning."""

import subprocess
import sys

import pytest
from documents import ROOT

pytest.importorskip("sphinx", reason="requirements-docs.txt is not installed")


@pytest.mark.slow
def test_site_builds(tmp_path):
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "--fresh-env", "-b", "html"]
    done = subprocess.run([*words, str(ROOT / "docs"), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file() and (tmp_path / "api/equations.html").is_file()
