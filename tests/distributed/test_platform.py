"""Devices that JAX_PLATFORMS names and the machine lacks."""

from importlib.util import find_spec

import pytest
from command import TINY

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
