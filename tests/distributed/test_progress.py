"""Progress of long loops: after a delay, with the time left, of process 0 alone, and only where it is asked for."""

import io
import re
import sys

import jax
import numpy as np
import pytest
from tiny_scoring import run, tiny_config

from cacenet_jax.distributed import progress
from cacenet_jax.retrieval import rankings, rerank
from cacenet_jax.retrieval.metrics import evaluate_blocks
from cacenet_jax.retrieval.query_expansion import query_expansion
from cacenet_jax.run.metric_writer import Progress


class Clock:
    """A clock that moves by a given time at each item of a loop."""

    now = 100.0

    def items(self, count, seconds):
        for item in range(count):
            self.now += seconds
            yield item


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def loop(clock, count, seconds):
    return list(progress.track(clock.items(count, seconds), "re-scoring", count, "pairs"))


def test_a_long_loop_shows_lines_with_the_time_left(clock, capsys):
    with progress.shown():
        assert loop(clock, 100, 1.0) == list(range(100))
    assert lines(capsys) == [
        "re-scoring: 5 of 100 pairs, 5.0 s, 1.6 min left",
        "re-scoring: 20 of 100 pairs, 20.0 s, 1.3 min left",
        "re-scoring: 35 of 100 pairs, 35.0 s, 1.1 min left",
        "re-scoring: 50 of 100 pairs, 50.0 s, 0.8 min left",
        "re-scoring: 65 of 100 pairs, 65.0 s, 0.6 min left",
        "re-scoring: 80 of 100 pairs, 80.0 s, 0.3 min left",
        "re-scoring: 95 of 100 pairs, 95.0 s, 0.1 min left",
        "re-scoring: 100 of 100 pairs, 100.0 s",
    ]


def test_the_time_left_leaves_out_the_first_step_which_compiles(clock, capsys):
    with progress.shown(), progress.Progress("extracting", 11, "batches") as bar:
        for seconds in (60, 1, 1, 20):
            clock.now += seconds
            bar.update()
    first, last = lines(capsys)
    assert first == "extracting: 1 of 11 batches, 60.0 s, 10.0 min left"
    assert last == f"extracting: 4 of 11 batches, 82.0 s, {22 / 3 * 7 / 60:.1f} min left"


def test_a_quick_loop_shows_nothing(clock, capsys):
    with progress.shown():
        loop(clock, 49, 0.1)
    assert lines(capsys) == []


def test_nothing_is_shown_unless_asked_for(clock, capsys):
    loop(clock, 100, 1.0)
    with progress.shown():
        with progress.shown(False):
            loop(clock, 100, 1.0)
        loop(clock, 1, 6.0)
    assert lines(capsys) == []
    with progress.shown():
        loop(clock, 2, 6.0)
    assert len(lines(capsys)) == 2


def test_other_processes_show_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress.shown():
        loop(clock, 100, 1.0)
    assert lines(capsys) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("delay", "is_seen"), [(0.0, True), (60.0, False)])
def test_a_terminal_shows_a_bar_after_the_delay(delay, is_seen, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY_S", delay)
    with progress.shown(), progress.Progress("ranking", 4, "queries") as bar:
        for _ in range(3):
            bar.update()
            if bar._bar is not None:
                bar._bar.refresh() if is_seen else None
    text = terminal.getvalue()
    assert bool(text) == is_seen
    if is_seen:  # elapsed time and time left
        assert re.search(r"ranking: +75%.* 3/4 \[\d\d:\d\d<\d\d:\d\d", text), text


def test_training_shows_steps_and_the_time_left(clock, capsys):
    bar = Progress(first_step=2, last_step=102, images_per_step=8)
    for step in range(3, 103):
        clock.now += 1
        bar.update(step, {"loss": 1.5})
    shown = lines(capsys)
    assert shown[0] == "step 7/102: 8 img/s, loss 1.500, 1.6 min left"
    assert shown[-1] == "step 102/102: 8 img/s, loss 1.500, 0.0 min left" and len(shown) == 8


@pytest.fixture
def impatient(monkeypatch):
    """Every loop is a long one, of several blocks."""
    monkeypatch.setattr(progress, "DELAY_S", -1.0)
    monkeypatch.setattr(rankings, "_MIN_QUERIES", 1)
    for module in (rankings, rerank):
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)


RNG = np.random.default_rng(0)
QUERY, GALLERY = (RNG.standard_normal((count, 4)).astype(np.float32) for count in (3, 9))
LABELS = (np.arange(3), np.arange(9) % 3, np.zeros(3, int), np.ones(9, int))
LOOPS = {
    "evaluation": (lambda: run(tiny_config()), ["extracting features", "ranking", "re-scoring"]),
    "blocks": (lambda: evaluate_blocks(lambda a, b: QUERY[a:b] @ GALLERY.T, *LABELS, block_size=1), ["ranking"]),
    "nearest": (lambda: rankings.nearest(QUERY, GALLERY, 2), ["ranking"]),
    "re-ranking": (
        lambda: rerank.k_reciprocal_features(QUERY, GALLERY, k1=3, k2=2),
        [f"re-ranking, {part}" for part in
         ("neighbours", "reciprocal neighbours", "encodings", "means of encodings", "distances")],
    ),
    "expansion": (lambda: query_expansion(QUERY, GALLERY, k=2, alpha=1.0), ["query expansion"]),
}  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", LOOPS)
def test_long_loops_of_the_package_show_it(name, capsys):
    function, titles = LOOPS[name]
    function()
    assert not lines(capsys)  # quiet unless asked for
    with progress.shown():
        function()
    shown = lines(capsys)
    assert list(dict.fromkeys(line.split(": ")[0] for line in shown)) == titles
    for title in titles:
        last = [line for line in shown if line.startswith(f"{title}: ")][-1]
        done, total = re.search(r": ([\d,]+) of ([\d,]+) ", last).groups()
        assert done == total, last
