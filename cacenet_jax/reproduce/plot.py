"""Plots of the tables, with a point per seed, a marker for the mean, and the paper's numbers for comparison."""

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cacenet_jax.reproduce.report import Line, Sweep, by_top_k, compared, gains, scores
from cacenet_jax.reproduce.tables import RANKINGS, SWEEP_TITLE, Table
from cacenet_jax.run.workdir import write_file

# Okabe and Ito's colour-blind-safe palette; the markers differ as well.
_LOOK: dict[str, dict[str, Any]] = {
    "individual": {"color": "#0072B2", "marker": "o"},
    "conditional": {"color": "#E69F00", "marker": "^"},
    "mixed": {"color": "#009E73", "marker": "s"},
}
_PAPER = {"color": "black", "marker": "D", "markersize": 7, "linestyle": "none", "label": "paper"}
_COSTS = {"describe": ("features", "#56B4E9"), "rank": ("ranking", "#999999"), "rescore": ("re-scoring", "#D55E00")}
_DPI = 150


def plot_table(table: Table, lines: Sequence[Line], path: Path) -> None:
    """Plot the mAP of each row and ranking.

    A second panel shows the gains over the first row, both ours and the paper's.

    Tables that span several data sets have a single panel, which includes the paper's numbers.
    """
    height = 1.9 + 0.62 * len(table.rows)
    figure = Figure(figsize=(13 if table.one_data_set else 8, height), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, 2 if table.one_data_set else 1, sharey=True, squeeze=False)[0].tolist()
    for position, line in enumerate(lines):
        for offset, name in enumerate(RANKINGS):
            _points(panels[0], list(scores(line, name, "mAP").values()), position + 0.22 * (offset - 1), name)
        if not line.cells:
            where = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
            text = "data absent or failed" if line.missing else "no run yet"
            panels[0].annotate(text, (0.5, position), color="0.4", backgroundcolor="white", **where)
    paper = {place: row.paper.mAP for place, row in enumerate(table.rows) if row.paper}
    panels[0].set_xlabel("mAP, per cent")
    panels[0].set_title("Each ranking, ours" if table.one_data_set else "Ours and the paper's")
    if table.one_data_set:
        for position, line in enumerate(lines[1:], start=1):
            name = compared(line.cells[0].results) if line.cells else "mixed"
            _points(panels[1], list(gains(line, lines[0], name, "mAP").values()), position - 0.1, name)
        panels[1].plot([paper[i] - paper[0] for i in paper if i], [i + 0.2 for i in paper if i], **_PAPER)
        panels[1].axvline(0, color="0.5", linewidth=1)
        panels[1].set_xlabel("mAP, points over the first row of the same seed")
        panels[1].set_title(f"Gain, and the paper's on {table.data}")
    else:
        panels[0].plot(list(paper.values()), list(paper), **_PAPER)
    panels[0].set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)
    for axes in panels:
        axes.grid(axis="x", color="0.88")
        for position in range(len(table.rows) - 1):
            axes.axhline(position + 0.5, color="0.93", linewidth=1)
    figure.suptitle(f"Table {table.number}: {table.title}", fontweight="bold")
    _legend(figure, panels)
    _save(figure, path)


def plot_sweep(sweeps: Sweep, path: Path) -> None:
    """Plot mAP and evaluation time against the number of re-scored images."""
    figure = Figure(figsize=(13, 4.8), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows_of = by_top_k(sweeps)
    for name in RANKINGS:
        means = {}
        for position, rows in enumerate(rows_of.values()):
            values = [100 * row[name]["mAP"] for row in rows if name in row]
            if values:
                means[position] = statistics.mean(values)
                left.plot([position] * len(values), values, alpha=0.45, markersize=4, linestyle="none", **_LOOK[name])
        if means:
            left.plot(list(means), list(means.values()), label=f"{name}, mean", **_LOOK[name])
    left.set_ylabel("mAP, per cent; small marks are seeds")
    left.margins(y=0.2)  # room for the legend
    bottom = [0.0] * len(rows_of)
    for part, (label, color) in _COSTS.items():
        values = [statistics.mean(row[part] for row in rows) for rows in rows_of.values()]  # empty before the first run
        right.bar(range(len(values)), values, 0.6, bottom=bottom, label=label, color=color)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    right.set_ylabel("seconds of an evaluation, mean")
    right.set_ylim(0, 1.3 * max(bottom, default=1))
    for axes in (left, right):
        axes.set_xticks(range(len(rows_of)), [str(k) for k in rows_of])
        axes.set_xlabel("K, re-scored images of a query")
        axes.grid(axis="y", color="0.88")
        axes.set_axisbelow(True)
        if rows_of:
            axes.legend(loc="upper left", ncols=3, fontsize=9)
    figure.suptitle(SWEEP_TITLE, fontweight="bold")
    _save(figure, path)


def _points(axes: Axes, values: list[float], height: float, ranking: str) -> None:
    """Plot a small point per seed and a large outlined marker for their mean."""
    if values:
        look = _LOOK[ranking]
        axes.plot(values, [height] * len(values), linestyle="none", markersize=5, alpha=0.45, **look)
        mean = statistics.mean(values)
        axes.plot(
            [mean], [height], linestyle="none", markersize=9, markeredgecolor="black", label=f"{ranking}, mean", **look
        )


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles["small marks: seeds"] = panels[0].plot([], [], color="0.6", marker="o", linestyle="none", markersize=5)[0]
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure to a file atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_file(path, buffer.getvalue())
