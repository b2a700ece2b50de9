"""Devices that JAX_PLATFORMS names and the machine lacks, and the compiler flags that the docs recommend."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from command import ROOT, TINY

HAS_CUDA = any(find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))


@pytest.mark.parametrize(("platform", "mode"), [("cuda", "train"), ("gpu0", "evaluate"), ("cuda", "export")])
def test_a_platform_without_devices_is_one_line(command, platform, mode):
    if platform == "cuda" and HAS_CUDA:
        pytest.skip("jax for CUDA is installed")
    done = command(f"--config={TINY}", "--workdir=run", f"--mode={mode}", env={"JAX_PLATFORMS": platform})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    told = f"error: JAX_PLATFORMS: found '{platform}', for which no device starts"
    assert done.stderr.startswith(told) and "set JAX_PLATFORMS=cpu" in done.stderr
    assert not (command.folder / "run").exists()


def test_flags_in_the_docs_are_known_to_the_compiler():
    """XLA ends the process at a flag that it does not know; a CPU knows those of GPUs too."""
    flags = set(re.findall(r"--xla_gpu_\w+(?:=\w+)?", (ROOT / "docs/reliability.md").read_text()))
    assert len(flags) == 3
    for words, known in ((" ".join(sorted(flags)), True), ("--xla_gpu_no_such_flag=true", False)):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": words}
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, check=False
        )
        assert (done.returncode == 0) == known, (words, done.stderr)
