"""Several processes as one run: started behind one flag, writing as one, agreeing, and ending together.

A run of N processes has one coordination service, in process 0. What it is used for beside JAX's own needs: a barrier
that may wait for hours, words that every process can read, and the news that one of them has failed. In a run of one
process every function here does nothing or gives back what it got.
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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from cacenet_jax.errors import UserError

_ROOM = "cacenet_jax"  # our keys in the coordination service
_POLL_S = 0.5
_GRACE_S = 5.0  # how long a failed process waits for the others to hear of it
_LONGEST_S = 24 * 3600  # of a wait at a barrier: process 0 may be preparing a large data set
_LOST = re.compile(r"Gloo|NCCL|[Cc]onnection|UNAVAILABLE|[Hh]eartbeat|[Bb]arrier|DEADLINE_EXCEEDED|ABORTED")
_joined = threading.Event()
_ending = threading.Event()  # with a line of its own
_leaving = threading.Event()  # and the others are told
_calls: Counter[str] = Counter()
_FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


class NotJoinedError(UserError):
    """The processes of a cluster did not come together; the same command may succeed later."""

    exit_code = 1


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to the others; before anything that uses a device.

    Args:
        coordinator: HOST:PORT of process 0; None, like the next two, where TPU, Slurm or Kubernetes tells it.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: nothing was detected, or what was detected is one process: never N runs in place of one.
        NotJoinedError: the others or the devices could not be reached.
    """
    where = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or "the coordinator that this cluster names"
    # Its preemption service would swallow SIGTERM, which is how Slurm, Kubernetes and people end a run.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own timeout ends the process with a stack of C++ calls that Python cannot catch, so ours comes before it.
    clock = threading.Timer(timeout, _give_up, (where, timeout))
    clock.daemon = True
    clock.start()
    kind: type[UserError] = NotJoinedError
    # Flags say it all: a Slurm shell that they are typed in would choose this process's GPU.
    detection = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method=detection, initialization_timeout=timeout + 60,
        )  # fmt: skip
        found = jax.process_count()  # starts the devices, for which the processes meet again
    except Exception as error:
        reason = " ".join(str(error).split()) or f"{type(error).__name__} while the devices were started"
        if "coordinator_address should be defined" in reason:
            kind, reason = UserError, "no TPU, Slurm or Kubernetes cluster was detected"
        elif "RPC server" in reason:
            reason = f"the port of {where} cannot be opened on this machine, perhaps it is taken"
        raise kind(
            f"--distributed: found that processes cannot be joined ({reason}), expected a cluster that JAX detects or "
            f"{_FLAGS}; give the three flags, or leave --distributed out for a single process"
        ) from error
    finally:
        clock.cancel()
    expected = num_processes or 0
    if found != expected and (expected or found == 1):
        raise UserError(
            f"--distributed: found {found} process, expected {expected or 'several'}; start it on every "
            f"host with {_FLAGS}, or leave --distributed out for a single process"
        )
    _joined.set()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop,), name="watch the other processes", daemon=True)
    watcher.start()
    atexit.register(lambda: (stop.set(), watcher.join()))  # before JAX says goodbye to the coordinator


def _give_up(where: str, timeout: int) -> None:
    print(
        f"error: --distributed: found no answer within {timeout} s from {where} or from a process that should join it, "
        "expected every process to be started; check that all run, that the address is right and that the port is open, "
        "or raise --distributed_timeout",
        file=sys.stderr,
        flush=True,
    )
    os._exit(NotJoinedError.exit_code)


def is_writer() -> bool:
    """Whether this process writes the files of the run and prints: process 0."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; every process makes the same calls in the same order."""
    if client := _client():
        client.wait_at_barrier(_fresh(name), _LONGEST_S * 1000)


@contextlib.contextmanager
def writer_first(name: str) -> Iterator[None]:
    """Runs a block in process 0, then in all the others: what it leaves in a shared folder is there for them."""
    if not is_writer():
        barrier(name)
    yield
    if is_writer():
        barrier(name)


def exchange(name: str, text: str) -> list[str]:
    """What each process says, in the order of the processes."""
    client = _client()
    if client is None:
        return [text]
    key = _fresh(name)
    client.key_value_set(f"{key}/{jax.process_index():08d}", text)
    client.wait_at_barrier(key, _LONGEST_S * 1000)
    return [value for _, value in sorted(client.key_value_dir_get(key))]


def check_same(name: str, values: Mapping[str, Any]) -> None:
    """Raises UserError where a process holds other values than process 0; nested dictionaries that JSON can hold."""
    mine = json.loads(json.dumps(values))
    first = json.loads(exchange(name, json.dumps(mine))[0])
    ours, theirs = flatten_dict(mine, sep="."), flatten_dict(first, sep=".")
    for field in sorted(ours.keys() | theirs.keys()):
        if ours.get(field) != theirs.get(field):
            raise UserError(
                f"{name}: found {field}={ours.get(field)!r} in process {jax.process_index()}, expected "
                f"{theirs.get(field)!r} as in process 0; start every process with the same command, code and data"
            )


def from_writer(name: str, value: float) -> float:
    """The number that process 0 holds, to the last bit, so that all take one decision."""
    return float.fromhex(exchange(name, float(value).hex())[0])


def leave(code: int, reason: str) -> None:
    """Ends this process; in a run of several tells the others why, so that none waits for it.

    Args:
        code: exit code.
        reason: the line that the others show.
    """
    if _client() is None:
        sys.exit(code)
    tell_others(code, reason)
    _exit(code)


def said_by_first(code: int, reason: str) -> bool:
    """Whether process 0 ends alike, so that its line is enough; waits a moment for it. To be followed by `leave`."""
    if not _joined.is_set() or is_writer():
        return False
    _ending.set()
    with contextlib.suppress(Exception):  # it says nothing
        said = _client().blocking_key_value_get(f"{_ROOM}/failed/0", int(2000 * _POLL_S))
        return said == f"{code} {reason}"
    return False


def tell_others(code: int, reason: str) -> None:
    """Lets the others end with this code and reason, and waits until they have heard it; the caller then ends too."""
    if not _joined.is_set() or _leaving.is_set():  # nobody is there yet, or they were told
        return
    _ending.set()
    _leaving.set()
    client = _client()
    with contextlib.suppress(Exception):  # nothing is left to tell it to
        client.key_value_set(f"{_ROOM}/failed/{jax.process_index()}", f"{code} {reason}")
        deadline = time.monotonic() + _GRACE_S
        others = jax.process_count() - 1
        while time.monotonic() < deadline and len(client.key_value_dir_get(f"{_ROOM}/heard")) < others:
            time.sleep(_POLL_S / 5)
        _let_others_go_first()


def crash(error: Exception, *, debug: bool = False) -> None:
    """Ends this process after an error that is no UserError; one line where another process is what went wrong."""
    text = " ".join(str(error).split())
    if _LOST.search(text):
        code, told = _failure_elsewhere(2 * _POLL_S) or (
            1,
            f"process {jax.process_index()} lost the connection to another one ({text[:200]}); look at what the others "
            "printed last; the same command continues from the newest checkpoint",
        )
        if debug:
            traceback.print_exception(error)
        print(f"error: {told}", file=sys.stderr)
        leave(code, told)
    traceback.print_exception(error)
    leave(1, f"{type(error).__name__}: {text[:500]}")


def _failure_elsewhere(seconds: float = 0.0) -> tuple[int, str] | None:
    """Exit code of a process that failed and what it said, waiting for it so long; None if none did."""
    deadline = time.monotonic() + seconds
    while client := _client():
        for key, value in client.key_value_dir_get(f"{_ROOM}/failed"):
            who = int(key.rsplit("/", 1)[1])
            if who != jax.process_index():
                code, reason = value.split(" ", 1)
                return int(code), f"process {who} ended: {reason}"
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S / 5)
    return None


def _watch(stop: threading.Event) -> None:
    """Ends this process when another one has failed: a collective would wait for it for ever."""
    while not stop.wait(_POLL_S):
        try:
            failure = _failure_elsewhere()
            if failure:
                _client().key_value_set(f"{_ROOM}/heard/{jax.process_index()}", "")
        except Exception:  # the run is ending, or the coordinator is gone and JAX ends this process
            return
        if failure and _ending.is_set():
            return
        if failure:
            print(f"error: {failure[1]}", file=sys.stderr, flush=True)
            _let_others_go_first()
            _exit(failure[0])


def _let_others_go_first() -> None:
    """Process 0 has the coordinator: who loses it aborts with a C++ stack."""
    time.sleep(0 if jax.process_index() else 4 * _POLL_S)


def _exit(code: int) -> None:
    """Ends at once: the usual way out waits for the other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fresh(name: str) -> str:
    """A key of its own for each call; calls come in the same order in every process."""
    _calls[name] += 1
    return f"{_ROOM}/{name}/{_calls[name]}"


def _client() -> Any:
    """JAX's client of the coordination service; None in a run of one process. Orbax takes it from the same place."""
    from jax._src import distributed  # there is no public name for it

    return distributed.global_state.client
