"""Metrics of a run: metrics.jsonl, TensorBoard event files, and progress on the terminal."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from cacenet_jax.data import json_files
from cacenet_jax.distributed import progress
from cacenet_jax.run.workdir import write_file

_FLUSH_INTERVAL_S = 60.0


class MetricWriter:
    """Writer of metrics to workdir/metrics.jsonl and to TensorBoard event files."""

    def __init__(self, workdir: Path, first_step: int):
        """Open the files and drop metrics recorded after `first_step`, the step that the run resumes from."""
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept_lines = [line for line in self._path.read_bytes().splitlines() if _step_of(line) <= first_step]
            write_file(self._path, b"".join(line + b"\n" for line in kept_lines))
        self._file = self._path.open("a", buffering=1)
        self._board = _Board(workdir / "tensorboard", first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the line {"step": step, name: value, ...}. A slash in a name creates a group in TensorBoard."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.write(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        with contextlib.ExitStack() as stack:  # both, also if one fails
            stack.callback(self._board.close)
            stack.callback(self._file.close)


class _Board:
    """Event file of TensorBoard.

    It is written by the thread that trains. tensorboardX's SummaryWriter has a thread of its own, which dies on a full
    disk; its queue then blocks the training for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = -math.inf
        if first_step:  # TensorBoard hides what an interrupted run has written for later steps
            self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_INTERVAL_S:
            self._flushed = time.monotonic()
            self._file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def close(self) -> None:
        self._file.close()


class NullWriter:
    """Stand-in for MetricWriter and Progress in processes other than process 0."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def update(self, step: int, metrics: Mapping[str, float]) -> float:
        """Return 0 in place of a rate."""
        return 0.0

    def close(self) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics.jsonl that are JSON objects with a step; a killed process leaves others."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if math.isfinite(_step_of(line)):
            yield json_files.parse(line)


def _step_of(line: bytes) -> float:
    """Return the step of a line, or infinity if it has none."""
    try:
        step = json_files.number(json_files.parse(line)["step"])
    except (ValueError, KeyError, TypeError, IndexError):
        step = None
    return math.inf if step is None else step


class Progress:
    """Throughput, losses and remaining time of a training."""

    def __init__(self, first_step: int, last_step: int, images_per_step: int):
        """Start at `first_step` of `last_step` steps."""
        self._first, self._images = first_step, images_per_step
        self._step, self._start, self._compiled = first_step, time.monotonic(), False
        with progress.shown():
            self._bar = _Steps("training", last_step, "steps", first=first_step, is_prominent=True)

    def update(self, step: int, metrics: Mapping[str, float]) -> float:
        """Show the metrics of a step and return the mean rate in images/s, excluding compilation."""
        now = time.monotonic()
        rate = (step - self._first) * self._images / max(now - self._start, 1e-9)
        if not self._compiled:  # the first call includes compilation
            self._compiled, self._first, self._start = True, step, now
        self._bar.update(
            step - self._step, ", ".join([f"{rate:.0f} img/s", *(f"{k} {v:.3f}" for k, v in metrics.items())])
        )
        self._step = step
        return rate

    def close(self) -> None:
        """Close the bar, leaving its last state on the terminal."""
        self._bar.close()


class _Steps(progress.Progress):
    """Progress whose lines begin with the step."""

    def line(self, elapsed: float, left: float, note: str) -> str:
        """Return a line of text."""
        return f"step {self.done}/{self.total}: {note}, {left / 60:.1f} min left"
