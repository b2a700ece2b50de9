"""Multi-process setup: joining, barriers, key-value exchange, failure propagation.

The processes of a run share JAX's coordination service, which process 0 hosts. This module uses it for barriers with
long timeouts, the exchange of strings, and failure notifications. In a single-process run, these functions do not
communicate.
"""

import atexit
import contextlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from cacenet_jax.errors import UserError, print_line

_NAMESPACE = "cacenet_jax"  # prefix of our keys in the coordination service
_POLL_S = 0.5
_GRACE_S = 5.0  # time that a failed process waits for the others to read its message
_BARRIER_TIMEOUT_S = 24 * 3600  # process 0 may be preparing a large data set
_CONNECTION_ERROR = re.compile(r"Gloo|NCCL|[Cc]onnection|UNAVAILABLE|[Hh]eartbeat|[Bb]arrier|DEADLINE_EXCEEDED|ABORTED")
_joined = threading.Event()
_ending = threading.Event()  # this process is ending with its own message
_notified = threading.Event()  # the other processes have been notified
_key_counts: Counter[str] = Counter()
_stop_handlers: list[Callable[[int], Any]] = []  # at most one, that of the training loop
_FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


class NotJoinedError(UserError):
    """Error raised if this process could not join the others. Retrying the same command may succeed."""

    exit_code = 1


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Join this process to the others. Must be called before any device is used.

    Args:
        coordinator: HOST:PORT of process 0. If None, it is detected from TPU, Slurm or Kubernetes.
        num_processes: number of processes, detected if None.
        process_id: index of this process, starting at 0, detected if None.
        timeout: seconds to wait for the others.

    Raises:
        UserError: no cluster was detected, or it has an unexpected number of processes. A detected cluster with only
            one process is rejected, because each of N such processes would start an independent run.
        NotJoinedError: the other processes or the devices could not be reached.
    """
    where = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or "the coordinator of this cluster"
    # The preemption service would intercept SIGTERM, which Slurm, Kubernetes and users send to end a run.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own timeout aborts the process in C++, which Python cannot catch, so ours must fire first.
    timer = threading.Timer(timeout, _exit_on_timeout, (where, timeout))
    timer.daemon = True
    timer.start()
    error_type: type[UserError] = NotJoinedError
    # Explicit flags disable detection. In a Slurm shell, detection would also choose this process's GPU.
    detection = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method=detection, initialization_timeout=timeout + 60,
        )  # fmt: skip
        joined = jax.process_count()  # initialises the devices, which synchronises the processes again
    except Exception as error:
        reason = " ".join(str(error).split()) or f"{type(error).__name__} while starting the devices"
        if "coordinator_address should be defined" in reason:
            error_type, reason = UserError, "no TPU, Slurm or Kubernetes cluster was detected"
        elif "RPC server" in reason:
            reason = f"the port of {where} cannot be opened on this machine; it may be in use"
        raise error_type(
            f"--distributed: processes cannot be joined ({reason}), expected a cluster that JAX detects or "
            f"{_FLAGS}; give the three flags, or leave --distributed out for a single process"
        ) from error
    finally:
        timer.cancel()
    expected = num_processes or 0
    if joined != expected and (expected or joined == 1):
        raise UserError(
            f"--distributed: found {joined} process, expected {expected or 'several'}; start it on every "
            f"host with {_FLAGS}, or leave --distributed out for a single process"
        )
    _joined.set()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop,), name="watch the other processes", daemon=True)
    watcher.start()

    def end_watch() -> None:
        stop.set()
        watcher.join()

    atexit.register(end_watch)  # before JAX disconnects from the coordinator


def _exit_on_timeout(where: str, timeout: int) -> None:
    """Print one line and end the process. Runs in the timer's thread."""
    print(
        f"error: --distributed: found no answer within {timeout} s from {where} or from another process, expected "
        "every process to be started; check that all are running, that the address is right and the port open, "
        "or raise --distributed_timeout",
        file=sys.stderr,
        flush=True,
    )
    os._exit(NotJoinedError.exit_code)


def is_writer() -> bool:
    """Return True in process 0, the only process that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached this call. All processes must make the same calls in the same order."""
    if client := _client():
        client.wait_at_barrier(_unique_key(name), _BARRIER_TIMEOUT_S * 1000)


@contextlib.contextmanager
def writer_first(name: str) -> Iterator[None]:
    """Run a block in process 0 first, then in the others, so they can use the files that process 0 has written."""
    if not is_writer():
        barrier(name)
    yield
    if is_writer():
        barrier(name)


def exchange(name: str, text: str) -> list[str]:
    """Gather one string from each process, ordered by process index."""
    client = _client()
    if client is None:
        return [text]
    key = _unique_key(name)
    client.key_value_set(f"{key}/{jax.process_index():08d}", text)
    client.wait_at_barrier(key, _BARRIER_TIMEOUT_S * 1000)
    return [value for _, value in sorted(client.key_value_dir_get(key))]


def check_same(name: str, values: Mapping[str, Any]) -> None:
    """Raise UserError if this process's values differ from those of process 0.

    Args:
        name: subject of the error message, also used as a key.
        values: nested dictionaries of JSON values.
    """
    local = json.loads(json.dumps(values))
    writer = json.loads(exchange(name, json.dumps(local))[0])
    ours, expected = flatten_dict(local, sep="."), flatten_dict(writer, sep=".")
    for field in sorted(ours.keys() | expected.keys()):
        if ours.get(field) != expected.get(field):
            raise UserError(
                f"{name}: found {field}={ours.get(field)!r} in process {jax.process_index()}, expected "
                f"{expected.get(field)!r} as in process 0; start every process with the same command, code and data"
            )


def broadcast_from_writer(name: str, value: float) -> float:
    """Return process 0's value in every process, bit for bit, so that all processes make the same decision."""
    return float.fromhex(exchange(name, float(value).hex())[0])


def on_stop(handler: Callable[[int], Any] | None) -> None:
    """Set the function to call if another process has been asked to stop.

    Args:
        handler: function of the signal number, called in a thread; None removes the current one.
    """
    _stop_handlers[:] = [] if handler is None else [handler]


def agree_on_stop(number: int, step: int) -> int:
    """Notify the other processes that this one has been asked to stop, and agree on the last step.

    Args:
        number: signal number.
        step: last step that this process has begun. It must not begin another one before this call returns.

    Returns:
        Largest `step` of all processes.
    """
    client = _client()
    if client is None:
        return step
    client.key_value_set(f"{_NAMESPACE}/stop/{jax.process_index()}", f"{number} {step}")
    while len(announced := client.key_value_dir_get(f"{_NAMESPACE}/stop")) < jax.process_count():
        time.sleep(_POLL_S / 5)
    return max(int(value.split()[1]) for _, value in announced)


def _heed_stop() -> None:
    """Call the handler set by `on_stop` if another process has been asked to stop."""
    if _stop_handlers and (announced := _client().key_value_dir_get(f"{_NAMESPACE}/stop")):
        number = int(announced[0][1].split()[0])
        threading.Thread(target=_stop_handlers.pop(), args=(number,), daemon=True).start()


def shut_down(code: int, reason: str) -> None:
    """End this process and notify the others, so that none of them waits for it.

    Args:
        code: exit code.
        reason: one-line message for the other processes to print.
    """
    if _client() is None:
        sys.exit(code)
    notify_failure(code, reason)
    _exit(code)


def end_together(code: int) -> None:
    """End all processes with the same code, once each of them has called this function."""
    _ending.set()
    barrier("end")
    _delay_coordinator_exit()
    _exit(code)


def reported_by_writer(code: int, reason: str) -> bool:
    """Return True if process 0 has failed with the same code and reason, so its message suffices.

    Waits briefly for the report of process 0. The caller must call `shut_down` afterwards.
    """
    if not _joined.is_set() or is_writer():
        return False
    _ending.set()
    with contextlib.suppress(Exception):  # process 0 has reported nothing
        reported = _client().blocking_key_value_get(f"{_NAMESPACE}/failed/0", int(2000 * _POLL_S))
        return reported == f"{code} {reason}"
    return False


def notify_failure(code: int, reason: str) -> None:
    """Make the other processes end with this code and reason, and wait for their acknowledgement.

    The caller must end this process afterwards.
    """
    if not _joined.is_set() or _notified.is_set():
        return
    _ending.set()
    _notified.set()
    client = _client()
    with contextlib.suppress(Exception):  # the coordination service is gone
        client.key_value_set(f"{_NAMESPACE}/failed/{jax.process_index()}", f"{code} {reason}")
        deadline = time.monotonic() + _GRACE_S
        others = jax.process_count() - 1
        while time.monotonic() < deadline and len(client.key_value_dir_get(f"{_NAMESPACE}/heard")) < others:
            time.sleep(_POLL_S / 5)
        _delay_coordinator_exit()


def shut_down_on_error(error: Exception, *, debug: bool = False) -> None:
    """End this process after an unexpected error.

    Prints one line instead of a traceback if the error is a lost connection to another process.
    """
    text = " ".join(str(error).split())
    if _CONNECTION_ERROR.search(text):
        code, message = _failed_peer(2 * _POLL_S) or (
            1,
            f"process {jax.process_index()} lost the connection to another one ({text[:200]}); see the last lines of the "
            "others; the same command continues from the newest checkpoint",
        )
        if debug:
            traceback.print_exception(error)
        print_line(f"error: {message}")
        shut_down(code, message)
    traceback.print_exception(error)
    shut_down(1, f"{type(error).__name__}: {text[:500]}")


def _failed_peer(seconds: float = 0.0) -> tuple[int, str] | None:
    """Return the exit code and message of another process that has failed, or None.

    Waits up to `seconds` for a failure.
    """
    deadline = time.monotonic() + seconds
    while client := _client():
        for key, value in client.key_value_dir_get(f"{_NAMESPACE}/failed"):
            process = int(key.rsplit("/", 1)[1])
            if process != jax.process_index():
                code, reason = value.split(" ", 1)
                return int(code), f"process {process} ended: {reason}"
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S / 5)
    return None


def _watch(stop: threading.Event) -> None:
    """End this process if another one fails; collectives would otherwise wait forever."""
    while not stop.wait(_POLL_S):
        try:
            failure = _failed_peer()
            _heed_stop()
            if failure:
                _client().key_value_set(f"{_NAMESPACE}/heard/{jax.process_index()}", "")
        except Exception:  # the run is ending, or the coordinator is gone and JAX will end this process
            return
        if failure and _ending.is_set():
            return
        if failure:
            print_line(f"error: {failure[1]}")
            _delay_coordinator_exit()
            _exit(failure[0])


def _delay_coordinator_exit() -> None:
    """Delay the exit of process 0, because processes that lose the coordinator abort with a C++ stack trace."""
    time.sleep(0 if jax.process_index() else 4 * _POLL_S)


def _exit(code: int) -> None:
    """Exit immediately; a normal interpreter exit would wait for the other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _unique_key(name: str) -> str:
    """Return a key for this call. It is the same in every process, because all make their calls in the same order."""
    _key_counts[name] += 1
    return f"{_NAMESPACE}/{name}/{_key_counts[name]}"


def _client() -> Any:
    """Return JAX's coordination service client, or None in a single-process run. Orbax uses the same private module."""
    from jax._src import distributed  # there is no public API

    return distributed.global_state.client
