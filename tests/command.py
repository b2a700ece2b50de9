"""The command line in a process of its own, for the tests that run it as a user does."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/configs/tiny.py"


@dataclasses.dataclass(frozen=True)
class Command:
    """python -m cacenet_jax.main in a folder; compiled programs are kept, so that only the first run compiles."""

    folder: Path
    cache: Path

    def environment(self) -> dict[str, str]:
        """Of a user on one CPU device."""
        ours = {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return {**os.environ, **ours}

    def line(self, *words: str) -> list[str]:
        """What the user types."""
        return [sys.executable, "-m", "cacenet_jax.main", *words]

    def __call__(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        """Runs it to its end."""
        environment = {**self.environment(), **(env or {})}
        return subprocess.run(
            self.line(*words), cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def start(self, *words: str, stderr: int) -> subprocess.Popen:
        """Starts it in a process group of its own; standard error goes to a file descriptor."""
        return subprocess.Popen(
            self.line(*words), cwd=self.folder, env=self.environment(), stdout=subprocess.DEVNULL, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
