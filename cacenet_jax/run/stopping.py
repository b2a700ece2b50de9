"""Stop requests: SIGTERM and Ctrl-C end a run at once, or let training save first within a grace period.

Signals are read from a pipe by a thread. A handler in Python runs only when the main thread is between two bytecodes,
minutes later in a long compilation, and an exception raised there is lost if it falls into a destructor.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from cacenet_jax.errors import UserError, print_line

_WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
_CONTINUES = "the same command continues from the newest checkpoint"


class StoppedError(UserError):
    """Error that ends a run after a stop request, once its state is saved."""

    def __init__(self, message: str, exit_code: int):
        """Create the error with its line and exit code."""
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Stop request that a training loop obeys, at the same step in every process.

    Each process announces the step that it has begun and begins no further one until all have announced theirs; all stop
    after the largest. Announcements are made by a thread, so a process that waits in a collective for another one still
    makes its own.
    """

    def __init__(self, grace_s: float, first_step: int):
        """Create a request that nobody has made yet.

        Args:
            grace_s: seconds within which a requested stop must be complete; after that the process ends.
            first_step: first step of the loop, which is always made.
        """
        self._grace_s, self._signals = grace_s, 0
        self._lock, self._decided = threading.Lock(), threading.Event()
        self._begun, self.last_step, self._requested = first_step, 0, 0
        self._timer: threading.Timer | None = None

    def before(self, step: int) -> bool:
        """Return True if the loop must stop instead of beginning this step."""
        with self._lock:
            if not self._requested:
                self._begun = step
                return False
        self._decided.wait()
        return step > self.last_step

    @property
    def exit_code(self) -> int:
        """Exit code of the signal, or 0 if there is no request."""
        return 128 + self._requested if self._requested else 0

    @property
    def word(self) -> str:
        """Past participle for the message, such as "terminated"."""
        return _WORDS[signal.Signals(self._requested)]

    def signal(self, number: int) -> None:
        """Request the stop on the first signal of this process, and end it on the second. Called from a thread."""
        self._signals += 1
        if self._signals > 1:
            end_at_once(number, f"{_WORDS[signal.Signals(number)]}; {_CONTINUES}")
        self.make(number)

    def make(self, number: int) -> None:
        """Request the stop and agree on its step with the other processes. Called from a thread."""
        from cacenet_jax.distributed import processes

        with self._lock:
            if self._requested:
                return
            self._requested = number
        _say(f"{self.word}: saving; once more ends at once")
        self._timer = threading.Timer(self._grace_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        self.last_step = processes.agree_on_stop(number, self._begun)
        self._decided.set()

    def _give_up(self) -> None:
        end_at_once(self._requested, f"{self.word}; not saved within config.grace_s={self._grace_s:g} s; {_CONTINUES}")

    def done(self) -> None:
        """Cancel the end of the grace period."""
        if self._timer is not None:
            self._timer.cancel()


_current: StopRequest | None = None


@contextlib.contextmanager
def obeyed(grace_s: float, first_step: int) -> Iterator[StopRequest]:
    """Yield the request that a signal makes while the block runs.

    Args:
        grace_s: as in `StopRequest`.
        first_step: as in `StopRequest`.

    Raises:
        StoppedError: a stop was requested, and the block has ended.
    """
    from cacenet_jax.distributed import processes

    global _current
    request = _current = StopRequest(grace_s, first_step)
    processes.on_stop(request.make)
    try:
        yield request
    finally:
        _current = None
        processes.on_stop(None)
        if request.exit_code:
            request.done()
    if request.exit_code:
        raise StoppedError(
            f"{request.word}; the same command continues from step {request.last_step}", request.exit_code
        )


def end_at_once(number: int, line: str) -> None:
    """End the process with one line, which the other processes of the run print too."""
    _say(line)
    with contextlib.suppress(Exception):
        from cacenet_jax.distributed import processes

        processes.notify_failure(128 + number, line)
    for child in _children():  # a worker that reads its queue would outlive this process for a while
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(128 + number)  # an unfinished save is no checkpoint, as after a kill


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        print_line(f"\n{line}" if sys.stderr.isatty() else line)  # below the progress bar


def _children() -> list[int]:
    if "multiprocessing" not in sys.modules:
        return []
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


def listen() -> None:
    """Begin to obey SIGTERM and SIGINT, also as the first process of a container, where their default does nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _WORDS:
        signal.signal(number, lambda number, frame: None)

    def read() -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in _WORDS:
                threading.Thread(target=_obey, args=(numbers[0],), daemon=True).start()

    def forget() -> None:  # signals of a fork are not ours
        signal.set_wakeup_fd(-1)
        for number in _WORDS:
            signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    threading.Thread(target=read, name="signals", daemon=True).start()


def _obey(number: int) -> None:
    if request := _current:
        request.signal(number)
    else:
        end_at_once(number, f"{_WORDS[signal.Signals(number)]}; {_CONTINUES}")
