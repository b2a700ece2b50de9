"""The command line in a process of its own, for the tests that run it as a user does."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/configs/tiny.py"
PATIENCE = 600  # seconds for what takes a few on a machine that does nothing else


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

    def together(self, *words_of_each: Sequence[str], seconds: float = PATIENCE) -> list[subprocess.CompletedProcess]:
        """Runs programs, each given as all its words, at the same time, and waits for the end of all."""
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(
                    subprocess.Popen(
                        words, cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        text=True,
                    )
                )
                for words in words_of_each
            ]  # fmt: skip
            for process in running:
                stack.callback(process.kill)  # of one that ended it does nothing
            with ThreadPoolExecutor(len(running)) as pool:  # all pipes are read
                told = list(pool.map(lambda process: process.communicate(timeout=seconds), running))
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *texts)
            for process, texts in zip(running, told, strict=True)
        ]

    def pair(
        self,
        *words: str,
        first: Sequence[str] = (),
        second: Sequence[str] = (),
        program: Sequence[str] = ("-m", "cacenet_jax.main"),
    ) -> list[subprocess.CompletedProcess]:
        """Runs two processes of one run; `first` and `second` are further words of each."""
        where = ("--distributed", f"--coordinator={free_address()}", "--num_processes=2")
        return self.together(
            *((sys.executable, *program, *words, *where, f"--process_id={i}", *own) for i, own in enumerate((first, second)))
        )  # fmt: skip

    def start(self, *words: str, stderr: int) -> subprocess.Popen:
        """Starts it in a process group of its own; standard error goes to a file descriptor."""
        return subprocess.Popen(
            self.line(*words), cwd=self.folder, env=self.environment(), stdout=subprocess.DEVNULL, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip


def free_address() -> str:
    """Where processes of this machine can meet."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"
