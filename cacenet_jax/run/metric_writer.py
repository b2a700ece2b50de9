"""What a run says while it runs: metrics.jsonl, TensorBoard event files, a progress bar or plain lines."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

_PLAIN_SECONDS = 15.0


class MetricWriter:
    """Appends metrics to workdir/metrics.jsonl and to TensorBoard event files."""

    def __init__(self, workdir: Path, first_step: int):
        """Drops what a stopped run wrote past the checkpoint that it continues from: those steps come again."""
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= first_step]
            scratch = self._path.with_suffix(".tmp")
            scratch.write_text("".join(line + "\n" for line in kept))
            os.replace(scratch, self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line {"step": ..., name: value, ...}; names may group with a slash."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()


class Silent:
    """In place of MetricWriter and Progress where another process writes and shows."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes nothing."""

    def update(self, step: int, metrics: Mapping[str, float]) -> float:
        """Shows nothing; the rate is not measured."""
        return 0.0

    def close(self) -> None:
        """There is nothing to close."""


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


class Progress:
    """Images a second, losses and time left: a bar on a terminal, otherwise a plain line now and then."""

    def __init__(self, first_step: int, last_step: int, images_per_step: int):
        """Shows steps first_step .. last_step."""
        self._first, self._last, self._images = first_step, last_step, images_per_step
        self._start = self._spoken = time.monotonic()
        self._compiled = False
        how = {"unit": "step", "dynamic_ncols": True}
        self._bar = tqdm(total=last_step, initial=first_step, **how) if sys.stderr.isatty() else None

    def update(self, step: int, metrics: Mapping[str, float]) -> float:
        """Shows the state after a step; returns the mean rate since the start in images/s."""
        now = time.monotonic()
        rate = (step - self._first) * self._images / max(now - self._start, 1e-9)
        if not self._compiled:  # the first steps wait for the compiler and say nothing about the rest
            self._compiled, self._first, self._start = True, step, now
        parts = [f"{rate:.0f} img/s"] + [f"{k} {v:.3f}" for k, v in metrics.items()]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._spoken > _PLAIN_SECONDS or step == self._last:
            self._spoken = now
            left = (self._last - step) * self._images / max(rate, 1e-9) / 60
            print(f"step {step}/{self._last}: {', '.join(parts)}, {left:.1f} min left", file=sys.stderr, flush=True)
        return rate

    def close(self) -> None:
        """Leaves the last state on the terminal."""
        if self._bar is not None:
            self._bar.close()
