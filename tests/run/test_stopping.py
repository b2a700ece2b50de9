"""Stop requests: where the loop stops, in one process and in several."""

import io
import os
import signal
import sys
import threading
import time

import pytest

from cacenet_jax import main
from cacenet_jax.distributed import processes
from cacenet_jax.run import stopping
from cacenet_jax.run.workdir import UserError, locked


def test_without_a_request_the_loop_goes_on():
    with stopping.obeyed(30.0, 1) as stop:
        assert not any(stop.before(step) for step in range(2, 50))
    assert stop.exit_code == 0


def test_the_step_that_was_begun_is_the_last(capsys):
    with pytest.raises(stopping.StoppedError, match="terminated; the same command continues from step 7") as error:
        with stopping.obeyed(30.0, 1) as stop:
            for step in range(2, 50):
                if stop.before(step):
                    break
                if step == 7:
                    stop.signal(signal.SIGTERM)
    assert step == 8 and error.value.exit_code == 143
    assert "terminated: saving; once more ends at once" in capsys.readouterr().err


def test_a_process_that_is_behind_catches_up_with_the_others(monkeypatch):
    """The others have begun step 9: this process must make steps 4 to 9 too."""
    asked = threading.Event()

    def agree(number, step):
        assert (number, step) == (signal.SIGTERM, 3)
        asked.wait()
        return 9

    monkeypatch.setattr(processes, "agree_on_stop", agree)
    stop = stopping.StopRequest(30.0, 1)
    stop.before(3)
    thread = threading.Thread(target=stop.make, args=(signal.SIGTERM,))
    thread.start()
    while not stop.exit_code:
        pass
    asked.set()
    assert [stop.before(step) for step in range(4, 12)] == [False] * 6 + [True] * 2
    thread.join()
    stop.done()


def test_a_second_signal_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(stopping, "end_at_once", lambda number, line: ended.append((number, line)))
    stop = stopping.StopRequest(30.0, 1)
    stop.signal(signal.SIGINT)
    assert not ended
    stop.signal(signal.SIGINT)
    assert ended == [(signal.SIGINT, "interrupted; the same command continues from the newest checkpoint")]
    stop.done()


def test_the_grace_period_ends_the_run(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(stopping, "end_at_once", lambda number, line: "not saved within" in line and ended.set())
    stopping.StopRequest(0.01, 1).make(signal.SIGTERM)
    assert ended.wait(10)


class SlowStream(io.StringIO):
    """Standard error that lets other threads write after each write."""

    def write(self, text):
        count = super().write(text)
        time.sleep(0.05)
        return count


@pytest.mark.parametrize("second", ["signal", "end"])
def test_lines_of_several_threads_are_not_mixed(monkeypatch, second):
    """A second signal, or the end of the loop, comes while the line of the first signal is printed."""
    stream = SlowStream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(processes, "notify_failure", lambda code, reason: None)
    stop, end = stopping.StopRequest(30.0, 1), "terminated; the same command continues from step 1"
    others = {
        "signal": lambda: stop.signal(signal.SIGTERM),
        "end": lambda: main._end_stopped(stopping.StoppedError(end, 143)),
    }
    first = threading.Thread(target=stop.signal, args=(signal.SIGTERM,))
    first.start()
    while not stream.getvalue():
        pass
    with pytest.raises(SystemExit, match="143"):
        others[second]()
    first.join()
    stop.done()
    last = "terminated; the same command continues from the newest checkpoint" if second == "signal" else end
    assert stream.getvalue().splitlines() == ["terminated: saving; once more ends at once", last]


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match=r"found another run in progress \(process \d+ on .*\), expected none"):
            with locked(tmp_path):
                pass
    with locked(tmp_path):  # free again
        pass
