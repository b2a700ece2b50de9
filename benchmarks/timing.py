"""Timing by interleaved runs, tables and result files, without dependencies."""

import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SHORT_RUN = 0.2  # seconds; shorter functions are called several times a run, so that a clock and a wait cost nothing


class Timed(NamedTuple):
    """Seconds of one call of a function, over the repeated runs.

    Attributes:
        median: of the runs.
        low: the fastest run.
        high: the slowest run.
        runs: how many.
        calls: calls of the function a run, queued without waiting in between.
        cpu: processor seconds of a call, the median: on a CPU, what a busy machine disturbs least.
    """

    median: float
    low: float
    high: float
    runs: int
    calls: int
    cpu: float

    def __str__(self) -> str:
        """Median and range in milliseconds."""
        return f"{1e3 * self.median:.4g} ms ({1e3 * self.low:.4g} to {1e3 * self.high:.4g})"


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    wait: Callable[[Any], Any],
    *,
    repeats: int,
    queue: bool = True,
    limit_s: float = float("inf"),
) -> dict[str, Timed]:
    """Time functions in turn, so that whatever disturbs the machine for a while disturbs all of them.

    Args:
        functions: what to call; each returns what `wait` waits for. One call of each warms up.
        wait: returns when a result is there (and, on a device that works in order, all results before it).
        repeats: runs of each function, at least one.
        queue: call short functions several times a run and wait for the last one.
        limit_s: no new round begins after this many seconds.

    Returns:
        Seconds a call of each function.
    """
    calls = {}
    for name, function in functions.items():
        wait(function())
        begin = time.perf_counter()
        wait(function())
        once = time.perf_counter() - begin
        calls[name] = min(max(1, round(SHORT_RUN / max(once, 1e-6))), 1000) if queue else 1
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    processor: dict[str, list[float]] = {name: [] for name in functions}
    first = time.perf_counter()
    for done in range(max(repeats, 1)):
        if done and time.perf_counter() - first > limit_s:
            break
        for name, function in functions.items():
            used, begin = time.process_time(), time.perf_counter()
            for _ in range(calls[name]):
                result = function()
            wait(result)
            seconds[name].append((time.perf_counter() - begin) / calls[name])
            processor[name].append((time.process_time() - used) / calls[name])
            del result
    return {
        name: Timed(
            statistics.median(runs), min(runs), max(runs), len(runs), calls[name], statistics.median(processor[name])
        )
        for name, runs in seconds.items()
    }


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width, the first to the left and the others to the right; floats with four digits."""
    cells = [[f"{x:.4g}" if isinstance(x, float) else "-" if x is None else str(x) for x in row] for row in rows]
    cells = [list(header), *cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        rest = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        return "  ".join([f"{row[0]:<{widths[0]}}", *rest]).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])


class Report:
    """Report that prints as it goes and, given a folder, leaves NAME.txt and NAME.json there.

    Attributes:
        data: what the json file will hold.
    """

    def __init__(self, name: str, out: str | None):
        self._name, self._out, self._lines = name, out, []
        self.data: dict[str, Any] = {"benchmark": name, "python": platform.python_version()}

    def say(self, text: str) -> None:
        """Print lines and keep them for the text file."""
        print(text, flush=True)
        self._lines.append(text)

    def table(self, key: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table; under `key` the json file gets one object a row."""
        self.say(format_table(header, rows))
        self.data[key] = [dict(zip(header, row)) for row in rows]

    def write(self) -> None:
        """Write both files, if there is a folder."""
        if self._out:
            folder = pathlib.Path(self._out)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self._name}.txt").write_text("\n".join(self._lines) + "\n", encoding="utf-8")
            text = json.dumps(self.data, indent=1, default=lambda x: x._asdict() if hasattr(x, "_asdict") else str(x))
            (folder / f"{self._name}.json").write_text(text + "\n", encoding="utf-8")


def verdict(report: Report, bounds: Sequence[tuple[str, float | None, str, float | None]]) -> int:
    """Says of each (what, found, ">=" or "<=", bound) whether it holds; 1 if one does not, else 0.

    A bound of None is not checked; a value of None was not measured and holds no bound.
    """
    failed = 0
    for what, found, relation, bound in bounds:
        if bound is None:
            continue
        if found is None:
            report.say(f"check: {what} was not measured, bound {relation} {bound:g}: MISSED")
            failed = 1
            continue
        holds = found >= bound if relation == ">=" else found <= bound
        report.say(f"check: {what} {found:.4g}, bound {relation} {bound:g}: {'holds' if holds else 'MISSED'}")
        failed |= not holds
    report.data["check"] = "failed" if failed else "passed"
    return int(failed)
