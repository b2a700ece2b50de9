"""Progress of long loops with the time left, on stderr: a bar on a terminal, lines of text elsewhere.

Only process 0 shows it, only within `shown()`, and only of loops that take more than a few seconds. The command line
runs every mode within `shown()`; functions that are called from Python are quiet unless the caller does so too:

    with progress.shown():
        matches = reid.rank(queries, gallery)
"""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import jax
from tqdm import tqdm

from cacenet_jax.errors import print_line

T = TypeVar("T")

DELAY_S = 5.0  # loops that end sooner show nothing
INTERVAL_S = 15.0  # between two lines
_is_shown = contextvars.ContextVar("is_shown", default=False)


@contextlib.contextmanager
def shown(is_shown: bool = True) -> Iterator[None]:
    """Show the progress of the loops in a block, in process 0; `is_shown=False` silences them."""
    token = _is_shown.set(is_shown)
    try:
        yield
    finally:
        _is_shown.reset(token)


class Progress:
    """Progress of a loop, updated by the loop itself.

    Attributes:
        title: what is done.
        total: number of things to do.
        unit: what they are, in the plural.
        done: number of things that are done.
    """

    def __init__(self, title: str, total: int, unit: str, *, first: int = 0, is_prominent: bool = False):
        """Start a loop.

        Args:
            title: what is done.
            total: number of things to do.
            unit: what they are, in the plural.
            first: number of things that were done before.
            is_prominent: show the bar from the start and leave it there, and print a line at the end in any case.
        """
        self.title, self.total, self.unit, self.done = title, total, unit, first
        self._first = self._warm_first = first
        self._is_prominent, self._has_line = is_prominent, False
        self._is_shown = _is_shown.get() and jax.process_index() == 0
        self._start = self._warm_start = time.monotonic()
        self._next_line = self._start + DELAY_S
        self._bar = None
        if self._is_shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=first, desc=title, unit=f" {unit}", dynamic_ncols=True, leave=is_prominent,
                delay=0 if is_prominent else DELAY_S,
            )  # fmt: skip

    def update(self, count: int = 1, note: str = "") -> None:
        """Count things that are done; `note` is shown beside their number."""
        self.done = min(self.done + count, self.total)
        if not self._is_shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(self.done - self._bar.n)
            return
        now = time.monotonic()
        is_over = self.done == self.total
        if self._has_line or self._is_prominent if is_over else now >= self._next_line:
            self._next_line, self._has_line = now + INTERVAL_S, True
            print_line(self.line(now - self._start, self._left(now), note))
        if self._warm_first == self._first:  # the first things include compilation
            self._warm_first, self._warm_start = self.done, now

    def line(self, elapsed: float, left: float, note: str) -> str:
        """Return a line of text.

        Args:
            elapsed: seconds since the start.
            left: estimated seconds until the end.
            note: as in `update`.
        """
        time_left = f", {left / 60:.1f} min left" if self.done < self.total else ""
        note = f", {note}" if note else ""
        return f"{self.title}: {self.done:,} of {self.total:,} {self.unit}{note}, {elapsed:.1f} s{time_left}"

    def _left(self, now: float) -> float:
        """Estimate the seconds until the end from the rate so far, without the first update if there are others."""
        is_warm = self.done > self._warm_first > self._first
        done, elapsed = (
            (self.done - self._warm_first, now - self._warm_start)
            if is_warm
            else (self.done - self._first, now - self._start)
        )
        return elapsed * (self.total - self.done) / max(done, 1)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the bar."""
        self.close()


def track(items: Iterable[T], title: str, total: int, unit: str) -> Iterator[T]:
    """Yield items and show how many of them have been processed.

    Args:
        items: items of a loop.
        title: what is done.
        total: number of items.
        unit: what they are, in the plural.
    """
    with Progress(title, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
