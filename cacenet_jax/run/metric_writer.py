"""Metrics of a run: metrics.jsonl, TensorBoard event files, and progress on the terminal."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from cacenet_jax.run.workdir import write_file

_LINE_INTERVAL_S = 15.0
_FLUSH_INTERVAL_S = 60.0


class MetricWriter:
    """Writer of metrics to workdir/metrics.jsonl and to TensorBoard event files."""

    def __init__(self, workdir: Path, first_step: int):
        """Open the files and drop metrics recorded after `first_step`, the step that the run resumes from."""
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept_lines = [line for line in self._path.read_text().splitlines() if _step_of(line) <= first_step]
            write_file(self._path, "".join(line + "\n" for line in kept_lines))
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


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # truncated when the process was killed


class Progress:
    """Throughput, losses and remaining time: a progress bar on a terminal, periodic lines otherwise."""

    def __init__(self, first_step: int, last_step: int, images_per_step: int):
        """Start at `first_step` of `last_step` steps."""
        self._first, self._last, self._images = first_step, last_step, images_per_step
        self._start = self._last_line = time.monotonic()
        self._compiled = False
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=last_step, initial=first_step, unit="step", dynamic_ncols=True)

    def update(self, step: int, metrics: Mapping[str, float]) -> float:
        """Show the metrics of a step and return the mean rate in images/s, excluding compilation."""
        now = time.monotonic()
        rate = (step - self._first) * self._images / max(now - self._start, 1e-9)
        if not self._compiled:  # the first call includes compilation
            self._compiled, self._first, self._start = True, step, now
        parts = [f"{rate:.0f} img/s"] + [f"{k} {v:.3f}" for k, v in metrics.items()]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line > _LINE_INTERVAL_S or step == self._last:
            self._last_line = now
            left = (self._last - step) * self._images / max(rate, 1e-9) / 60
            print(f"step {step}/{self._last}: {', '.join(parts)}, {left:.1f} min left", file=sys.stderr, flush=True)
        return rate

    def close(self) -> None:
        """Close the bar, leaving its last state on the terminal."""
        if self._bar is not None:
            self._bar.close()
