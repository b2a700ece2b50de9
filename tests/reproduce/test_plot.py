"""The pictures show what they are given: marks of each ranking and the paper's, in their colours."""

import cv2
import numpy as np
import pytest

from cacenet_jax.reproduce import plot
from cacenet_jax.reproduce.report import Cell, Line
from cacenet_jax.reproduce.tables import TABLES, Row

BLUE, ORANGE, GREEN, BLACK, VERMILION = (0, 114, 178), (230, 159, 0), (0, 158, 115), (0, 0, 0), (213, 94, 0)


def results(**rankings):
    return {name: {"mAP": value, "rank1": value} for name, value in rankings.items()}


def lines(table, with_pairs=True):
    pairs = {"conditional": 0.42, "mixed": 0.5} if with_pairs else {}
    return [
        Line("r", "c", [], [Cell(seed, results(individual=0.4 + seed / 50, **pairs)) for seed in range(2)])
        for _ in table.rows
    ]


def colours(path):
    """How many pixels there are of each colour."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    number = image.reshape(-1, 3).astype(np.int64) @ (65536, 256, 1)
    found, counts = np.unique(number, return_counts=True)
    return {(x >> 16, x >> 8 & 255, x & 255): count for x, count in zip(found.tolist(), counts.tolist(), strict=True)}


@pytest.mark.parametrize("number", ["1", "4"])
def test_a_table_shows_all_rankings_and_the_papers_numbers(tmp_path, number):
    table = TABLES[number]
    plot.plot_table(table, lines(table), tmp_path / "all.png")
    found = colours(tmp_path / "all.png")
    assert all(found.get(colour, 0) > 100 for colour in (BLUE, ORANGE, GREEN))
    plot.plot_table(table, lines(table, with_pairs=False), tmp_path / "individual.png")
    alone = colours(tmp_path / "individual.png")
    assert alone[BLUE] > 100 and not alone.get(ORANGE) and not alone.get(GREEN)
    rows = [row._replace(paper=row.paper._replace(mAP=table.rows[0].paper.mAP)) for row in table.rows]
    plot.plot_table(table._replace(rows=tuple(rows)), lines(table), tmp_path / "other_paper.png")
    before, after = (cv2.imread(str(tmp_path / name)) for name in ("all.png", "other_paper.png"))
    assert before.shape != after.shape or (before != after).any()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_row_of_ones_own_has_its_marks_and_none_of_the_paper(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, path: figures.append(figure))
    table = TABLES["2"]
    for rows in (table.rows, (*table.rows, Row("Mine", None, "mine"))):
        grown = table._replace(rows=rows)
        plot.plot_table(grown, lines(grown), tmp_path / "table.png")
    papers, marks = [], []
    for figure in figures:
        (gains,) = (axes for axes in figure.axes if "Gain" in axes.get_title())
        papers.append([tuple(line.get_ydata()) for line in gains.lines if line.get_label() == "paper"])
        marks.append(sum(line.get_label() == "mixed, mean" for line in gains.lines))
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert papers[0] == papers[1] and len(papers[0][0]) == len(table.rows) - 1
    assert marks == [len(table.rows) - 1, len(table.rows)] and labels[-1] == "Mine"


def test_a_table_without_runs_can_be_drawn(tmp_path):
    table = TABLES["2"]
    plot.plot_table(table, [Line("r", "c") for _ in table.rows], tmp_path / "empty.png")
    found = colours(tmp_path / "empty.png")
    assert found[BLACK] > 1000 and not found.get(GREEN)  # the paper's gains are there


def test_the_sweep_shows_rankings_and_costs(tmp_path):
    costs = {"seconds": 5.0, "describe": 3.0, "rescore": 1.5, "rank": 0.5}
    rows = [{"top_k": k, "pairs": k, **results(individual=0.4, conditional=0.42, mixed=0.5), **costs} for k in (10, 20)]
    plot.plot_sweep({0: rows, 1: rows}, tmp_path / "sweep.png")
    found = colours(tmp_path / "sweep.png")
    assert all(found.get(colour, 0) > 100 for colour in (BLUE, ORANGE, GREEN, VERMILION))
    plot.plot_sweep({}, tmp_path / "empty.png")
    assert not colours(tmp_path / "empty.png").get(GREEN)
