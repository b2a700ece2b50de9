"""Learning curves of a run: training losses, learning rate and validation mAP, from metrics.jsonl.

Legend: n recorded steps of a curve.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cacenet_jax.data.json_files import number
from cacenet_jax.run.metric_writer import read_metrics
from cacenet_jax.train import LOSSES
from cacenet_jax.visualize.style import FONT, INK, WIDTH, Sheet

RATE = "learning_rate"
VALIDATION = {f"val/{name}_mAP": name for name in ("individual", "conditional", "mixed")}
# Blue, orange and purple of Okabe and Ito, told apart by dashes and markers too.
_LOOKS = {
    "individual": ("#0072B2", "solid", "o"), "conditional": ("#E69F00", (0, (4, 2)), "s"),
    "mixed": ("#CC79A7", (0, (1, 1.5)), "^"),
}  # fmt: skip
_FEW = 40  # steps up to which each is marked by a point


class Curve(NamedTuple):
    """A metric over the steps of a run.

    Attributes:
        step_n: steps, in ascending order.
        value_n: values; NaN where the file has no finite number, which leaves a gap.
    """

    step_n: Float[np.ndarray, "n"]
    value_n: Float[np.ndarray, "n"]


def read_curves(path: Path) -> dict[str, Curve]:
    """Read the losses, the learning rate and the validation mAP, as a fraction of 1, from a metrics.jsonl.

    If a metric of a step was written several times, as by a run that was resumed or restarted, its last value counts.
    Lines that are no JSON objects with a step are ignored.

    Args:
        path: the file. Without one, or with one that cannot be read, there are no curves.

    Returns:
        Curves with at least one finite value, by name in metrics.jsonl.
    """
    shown = (*LOSSES, RATE, *VALIDATION)
    values: dict[str, dict[float, float]] = {name: {} for name in shown}
    try:
        for line in read_metrics(path):
            for name in values.keys() & line.keys():
                value = number(line[name])
                values[name][float(line["step"])] = np.nan if value is None else value
    except OSError:
        return {}
    curves = {name: _sorted(of_step) for name, of_step in values.items() if of_step}
    return {name: curve for name, curve in curves.items() if np.isfinite(curve.value_n).any()}


def _sorted(of_step: Mapping[float, float]) -> Curve:
    step_n = np.array(sorted(of_step))
    return Curve(step_n, np.array([of_step[step] for step in step_n]))


def figure(curves: Mapping[str, Curve], steps_per_epoch: int | None = None, columns: int = 2) -> Figure:
    """Draw one panel per training loss, one for the learning rate and one for the validation mAP, as far as they exist.

    Args:
        curves: result of `read_curves`, not empty.
        steps_per_epoch: number of steps of an epoch, which adds an axis of epochs; None if unknown.
        columns: number of panels side by side.
    """
    panels = [
        (name.replace("_", " "), {name.replace("_", " "): curves[name]}) for name in (*LOSSES, RATE) if name in curves
    ]
    validation = {short: curves[name] for name, short in VALIDATION.items() if name in curves}
    if validation:
        percent = {name: curve._replace(value_n=100 * curve.value_n) for name, curve in validation.items()}
        panels.append(("validation mAP, per cent", percent))
    rows = -(-len(panels) // columns)
    left, top, below, tall, between = 0.6, 0.75 if steps_per_epoch else 0.4, 0.5, 1.25, 0.5
    wide = (WIDTH - 2 * left - 0.15) / 2
    sheet = Sheet(0.15 + columns * (left + wide), top + rows * tall + (rows - 1) * between + below)
    last = max(float(curve.step_n[-1]) for curve in curves.values())
    for place, (title, lines) in enumerate(panels):
        row, column = divmod(place, columns)
        axes = sheet.plot(left + column * (wide + left), top + row * (tall + between), wide, tall)
        _draw(axes, title, lines)
        axes.set_xlim(0, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        if place + columns >= len(panels):
            axes.set_xlabel("step", fontsize=FONT)
        if row == 0 and steps_per_epoch:
            to_epoch = lambda step: np.asarray(step) / steps_per_epoch
            epochs = axes.secondary_xaxis(
                "top", functions=(to_epoch, lambda epoch: np.asarray(epoch) * steps_per_epoch)
            )
            epochs.set_xlabel("epoch", fontsize=FONT)
            epochs.tick_params(labelsize=FONT)
            epochs.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.set_title(title, loc="left", fontsize=FONT + 1, weight="bold", pad=30)
    return sheet.figure


def _draw(axes: Axes, title: str, lines: Mapping[str, Curve]) -> None:
    """Draw the curves of one panel, with a key if there are several."""
    for name, curve in lines.items():
        colour, dashes, marker = _LOOKS.get(name, (INK, "solid", "o"))
        marked = marker if len(curve.step_n) <= _FEW else "none"
        axes.plot(*curve, color=colour, linestyle=dashes, marker=marked, markersize=2.5, linewidth=1.1, label=name)
    axes.set_title(title, loc="left", fontsize=FONT + 1, weight="bold", pad=5)
    if any(name in _LOOKS for name in lines):
        axes.legend(fontsize=FONT, frameon=False, labelspacing=0.2, borderaxespad=0.1)
