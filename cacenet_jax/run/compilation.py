"""Compiled programs: kept from run to run in a cache, and compiled once in a run."""

import hashlib
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # of each program, one that a cache holds included
_compiled = 0


def default_cache() -> Path:
    """Where compiled programs are kept: in the user's cache folder, apart for each kind of processor.

    XLA's programs for CPUs use what this one can do, so that a home shared by several machines needs several folders.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]
    return Path(base) / "cacenet_jax" / "xla" / f"{platform.machine()}-{kind}"


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def use_cache() -> None:
    """Keeps compiled programs in `default_cache()` unless JAX_COMPILATION_CACHE_DIR names another folder."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    try:
        folder = default_cache()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a machine without a home, or one that cannot be written: it compiles each time
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def count() -> int:
    """How many programs have been compiled, or taken from a cache, since this module was imported."""
    return _compiled


def _on_event(event: str, seconds: float, **_: Any) -> None:
    global _compiled
    _compiled += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_on_event)


def warn_if_compiled_again(step: Callable[[Any, Any], Any], settled: int = 2) -> Callable[[Any, Any], Any]:
    """A training step that logs a warning when it is compiled after its first calls.

    Args:
        step: compiled (state, batch) -> anything.
        settled: calls that may compile: the first, and one more where a result is laid out in another way than the start.

    Returns:
        The same function. Each call that compiles costs what the first one did; the warning names the call and shapes.
    """
    calls = 0

    def watched(state: Any, batch: Any) -> Any:
        nonlocal calls
        before = count()
        result = step(state, batch)
        calls += 1
        if calls > settled and count() > before:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch))
            logging.warning(
                "the training step was compiled again at call %d of this run, expected once; its batch: %s; every batch "
                "must have one shape and type",
                calls, shapes,
            )  # fmt: skip
        return result

    return watched
