"""Medians of interleaved runs, tables, verdicts, and the counts and peaks they are set against."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import device, timing


def test_functions_are_timed_in_turn_and_the_median_is_taken(monkeypatch):
    order, clock = [], itertools.count()
    cost = {"a": iter([9, 9, 1, 5, 3]), "b": iter([9, 9, 2, 2, 2])}

    def function(name):
        def call():
            order.append(name)
            for _ in range(next(cost[name])):
                next(clock)

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = timing.interleaved({n: function(n) for n in "ab"}, lambda x: x, repeats=3, queue=False)
    assert "".join(order) == "aabb" + "ababab"  # warm up and first look, then in turn
    assert [found["a"].low, found["a"].median, found["a"].high] == [2, 4, 6]  # a reading of the clock costs one
    assert found["b"].median == 3 and found["b"].runs == 3


def test_short_functions_are_queued_and_the_limit_ends_the_rounds(monkeypatch):
    now, waits = [0.0], []

    def call():
        now[0] += 0.01

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = timing.interleaved({"a": call}, lambda x: waits.append(now[0]), repeats=100, limit_s=1.0)["a"]
    assert found.calls == 20 and found.median == pytest.approx(0.01)  # 0.2 s a run
    assert found.runs in (5, 6)  # the round that passes the limit is the last
    assert len(waits) == 2 + found.runs


def test_tables_align_and_reports_leave_text_and_json(tmp_path, capsys):
    report = timing.Report("x", str(tmp_path / "new"))
    report.table("rows", ("what", "ms"), [("a", 1.23456), ("long name", None)])
    report.write()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["what          ms", "---------  -----", "a          1.235", "long name      -"]
    assert (tmp_path / "new" / "x.txt").read_text().splitlines() == lines
    assert json.loads((tmp_path / "new" / "x.json").read_text())["rows"] == [
        {"what": "a", "ms": 1.23456},
        {"what": "long name", "ms": None},
    ]


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ([("a", 2.0, ">=", 1.0), ("b", 2.0, "<=", 2.0)], 0),
        ([("a", 0.5, ">=", 1.0), ("b", 2.0, "<=", 2.0)], 1),
        ([("b", 2.1, "<=", 2.0)], 1),
        ([("a", float("nan"), ">=", 1.0)], 1),
        ([("not bounded", 9.0, "<=", None)], 0),
        ([("not measured", None, ">=", 1.0)], 1),
    ],
)
def test_a_missed_bound_is_code_1(bounds, code, capsys):
    assert timing.verdict(timing.Report("x", None), bounds) == code
    assert ("MISSED" in capsys.readouterr().out) == bool(code)


def test_operations_are_counted_through_loops_and_calls():
    left, right = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 2))
    assert device.matrix_flops(lambda a, b: a @ b, left, right) == 2 * 3 * 5 * 7 * 2

    def loop(x):
        return jax.lax.scan(jax.checkpoint(lambda c, _: (jax.jit(jnp.matmul)(c, c), None)), x, length=4)[0]

    assert device.matrix_flops(loop, jnp.ones((6, 6))) == 4 * 2 * 6**3
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert device.matrix_flops(convolve, image, kernel) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 4)


def test_peaks_of_known_devices():
    assert device.nominal_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert device.nominal_peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert device.nominal_peak("NVIDIA H200", "bfloat16") == 989e12
    assert device.nominal_peak("cpu", "float32") is None
    assert device.measured_peak("float32", size=64, repeats=1) > 0


def test_compiled_functions_tell_their_cost():
    x = jnp.ones((16, 16))
    compiled = device.compiled(lambda x: x @ x, x)
    np.testing.assert_array_equal(compiled(x), 16 * np.ones((16, 16)))
    assert device.cost_flops(compiled) == pytest.approx(2 * 16**3, rel=0.1)
    assert device.memory_bytes(compiled) >= 2 * 4 * 16**2
