"""Learning curves: what is drawn is what metrics.jsonl says, whatever was interrupted."""

import json
import math

import numpy as np
import pytest

from cacenet_jax.run.metric_writer import MetricWriter
from cacenet_jax.visualize.curves import figure, read_curves


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def drawn(curves, steps_per_epoch=None):
    """The lines of every panel by its title: (steps, values)."""
    panels = [axes for axes in figure(curves, steps_per_epoch).axes if axes.get_lines()]
    return {
        axes.get_title(loc="left"): {
            str(line.get_label()): tuple(np.asarray(line.get_data())) for line in axes.get_lines()
        }
        for axes in panels
    }


def test_last_line_of_a_step_wins_for_each_metric(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 10, "loss": 9.0, "triplet": 0.9, "learning_rate": 0.1, "accuracy": 0.5},
        {"step": 20, "loss": 8.0, "triplet": 0.8, "learning_rate": 0.2},
        {"step": 20, "val/individual_mAP": 0.25, "val/mixed_mAP": 0.5, "val/mAP_mix_0.1": 0.7},
        {"step": 30, "loss": 7.0, "triplet": 0.7, "learning_rate": 0.3},
        {"step": 20, "loss": 6.0, "learning_rate": 0.4},  # resumed from step 10
    )
    curves = read_curves(path)
    assert {name: (curve.step_n.tolist(), curve.value_n.tolist()) for name, curve in curves.items()} == {
        "loss": ([10, 20, 30], [9, 6, 7]), "triplet": ([10, 20, 30], [0.9, 0.8, 0.7]),
        "learning_rate": ([10, 20, 30], [0.1, 0.4, 0.3]), "val/individual_mAP": ([20], [0.25]),
        "val/mixed_mAP": ([20], [0.5]),
    }  # fmt: skip
    panels = drawn(curves)
    np.testing.assert_array_equal(panels["loss"]["loss"], ([10, 20, 30], [9, 6, 7]))
    np.testing.assert_array_equal(panels["triplet"]["triplet"], ([10, 20, 30], [0.9, 0.8, 0.7]))
    np.testing.assert_array_equal(panels["learning rate"]["learning rate"], ([10, 20, 30], [0.1, 0.4, 0.3]))
    np.testing.assert_array_equal(panels["validation mAP, per cent"]["mixed"], ([20], [50]))
    np.testing.assert_array_equal(panels["validation mAP, per cent"]["individual"], ([20], [25]))
    assert len(panels) == 4


def test_a_resumed_run_continues_its_curve(tmp_path):
    first = MetricWriter(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricWriter(tmp_path, 2)
    second.write(3, {"loss": 30.0})
    second.close()
    curve = read_curves(tmp_path / "metrics.jsonl")["loss"]
    assert (curve.step_n.tolist(), curve.value_n.tolist()) == ([1, 2, 3], [1, 2, 30])


def test_missing_numbers_are_gaps_and_broken_lines_are_left_out(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "loss": 4.0, "triplet": 1.0},
        {"step": 2, "loss": math.nan, "triplet": None},
        {"step": 3, "loss": "low"},
        {"step": 4, "loss": 3.0, "triplet": 2.0},
        {"loss": 100.0}, '["step"]\n', "\n", '\xff{"step": 5, "loss": 1}\n', '{"step": 6, "lo',
    )  # fmt: skip
    loss, triplet = read_curves(path)["loss"], read_curves(path)["triplet"]
    np.testing.assert_array_equal(loss.step_n, [1, 2, 3, 4])
    np.testing.assert_array_equal(loss.value_n, [4, np.nan, np.nan, 3])
    np.testing.assert_array_equal(triplet.step_n, [1, 2, 4])
    np.testing.assert_array_equal(triplet.value_n, [1, np.nan, 2])
    np.testing.assert_array_equal(drawn(read_curves(path))["loss"]["loss"], ([1, 2, 3, 4], [4, np.nan, np.nan, 3]))


def test_nothing_to_draw_is_no_curve(tmp_path):
    assert read_curves(tmp_path / "missing.jsonl") == {}
    assert read_curves(write(tmp_path / "metrics.jsonl", '{"step": 1, "los')) == {}
    assert read_curves(write(tmp_path / "metrics.jsonl", {"step": 1, "loss": math.nan})) == {}
    (tmp_path / "folder").mkdir()
    assert read_curves(tmp_path / "folder") == {}


@pytest.mark.parametrize("steps_per_epoch", [None, 4])
def test_epochs_stand_above_the_steps(tmp_path, steps_per_epoch):
    path = write(tmp_path / "metrics.jsonl", *({"step": step, "loss": 1 / step} for step in range(1, 41)))
    sheet = figure(read_curves(path), steps_per_epoch)
    sheet.canvas.draw()
    (above,) = [axes for axes in sheet.axes for axes in axes.child_axes] or [None]
    if steps_per_epoch is None:
        assert above is None
    else:
        below = sheet.axes[0].get_xlim()
        assert above.get_xlabel() == "epoch"
        np.testing.assert_allclose(above.get_xlim(), np.array(below) / 4)
