"""Settings that must hold before any backend starts: eight CPU devices, quick compilation, types checked at run time."""

import os
import signal

# A shell's background job ignores Ctrl-C and hands that on; the runs that tests start must hear it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Compiling is most of what the tests do: machine code that is made faster is slower to make. Programs stay as they are.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook

install_import_hook("cacenet_jax", "beartype.beartype")

import hypothesis
import jax
import pytest

# The same examples on every run and machine; no deadline, because the first example of a shape compiles.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def x64():
    """Float64 in JAX for one test; the others stay in float32, as users run it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def command(tmp_path, request):
    """The command line as a user types it, in an empty folder; what XLA compiled is kept for the next time."""
    from command import Command

    return Command(tmp_path, request.config.cache.mkdir("xla"))
