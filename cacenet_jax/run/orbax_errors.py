"""Errors of orbax's background threads, which it logs at once but raises only after waiting for all other threads."""

import logging as standard_logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

import jax
from absl import logging

_POLL_S = 0.2
_failures: list[BaseException] = []


def collect() -> None:
    """Begin to collect the errors of orbax's threads in place of logging them; forget earlier ones.

    Its advice for slow disks is hidden too.
    """
    _failures.clear()
    logging.get_absl_logger().addFilter(_is_shown)  # one filter, however often it is added


def _is_shown(record: standard_logging.LogRecord) -> bool:
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    if record.levelno >= standard_logging.ERROR and record.exc_info and record.exc_info[1]:
        _failures.append(record.exc_info[1])
    return record.levelno < standard_logging.ERROR and "Waiting for previous save" not in record.getMessage()


def attended(work: Callable[[], object]) -> None:
    """Do work that waits for saves, and raise the first error of a thread of orbax.

    With several processes, orbax waits 20 minutes for the signals of threads that will not come, in each process.
    """
    if jax.process_count() == 1:
        work()
        return
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            return outcome.result(_POLL_S)
        except TimeoutError:
            if outcome.done():
                raise
            if _failures:
                raise _failures[0] from None
