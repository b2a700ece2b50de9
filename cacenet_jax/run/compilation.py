"""Persistent compilation cache, and a warning when the training step is compiled more than once."""

import hashlib
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # also recorded for programs loaded from a cache
_num_compiled = 0


def default_cache_dir() -> Path:
    """Return the compilation cache folder for this type of CPU, within the user's cache folder.

    XLA compiles for specific CPU features, so different machines that share a home folder need separate caches.
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


def enable_cache() -> None:
    """Cache compiled programs in `default_cache_dir()`, unless JAX_COMPILATION_CACHE_DIR names another folder."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = default_cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no writable home folder: compile in every run
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def num_compiled() -> int:
    """Return the number of programs compiled or loaded from a cache since this module was imported."""
    return _num_compiled


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    global _num_compiled
    _num_compiled += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_on_event)


def warn_on_recompilation(step: Callable[[Any, Any], Any], settled: int = 2) -> Callable[[Any, Any], Any]:
    """Wrap a jitted training step to log a warning if a later call recompiles it.

    Args:
        step: jitted function of (state, batch).
        settled: number of initial calls that may compile. By default 2, because the layout of the returned state may
            differ from that of the initial state.

    Returns:
        A function that returns the same results. The warning includes the call number and the batch shapes.
    """
    calls = 0

    def watched(state: Any, batch: Any) -> Any:
        nonlocal calls
        before = num_compiled()
        result = step(state, batch)
        calls += 1
        if calls > settled and num_compiled() > before:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch))
            logging.warning(
                "the training step was compiled again at call %d of this run, expected once; its batch: %s; every batch "
                "must have one shape and type",
                calls, shapes,
            )  # fmt: skip
        return result

    return watched
