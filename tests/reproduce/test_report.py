"""What the tables say of made-up results: numbers by hand."""

import csv
import io

import pytest

from cacenet_jax.reproduce import report
from cacenet_jax.reproduce.report import Cell, Line
from cacenet_jax.reproduce.tables import TABLES, Row, Score, Table

TABLE = Table("9", "Made up", "Nowhere", (
    Row("Baseline", Score(70.0, 80.0), "individual"),
    Row("Ours", Score(74.5, 83.0), "full", note="a remark"),
    Row("Other", Score(72.0, 79.0), "normal"),
))  # fmt: skip


def results(individual, mixed=None, options=None):
    """mAP as given and rank-1 a tenth above it."""
    found = {
        "data": "people", "options": options or {"seed": 3}, "mix": 0.5, "top_k": 50, "num_query": 1320, "num_gallery": 1600,
        "num_valid": 1319, "step": 900, "seconds": 4.5,
    }  # fmt: skip
    for name, value in {"individual": individual, "conditional": mixed and mixed - 0.02, "mixed": mixed}.items():
        if value:
            found[name] = {"mAP": value, "rank1": value + 0.1, "rank5": 0.8, "rank10": 0.9, "mINP": 0.1}
    return found


def lines():
    baseline = [Cell(0, results(0.40), 61.0), Cell(1, results(0.42), 62.0)]
    ours = [Cell(0, results(0.41, 0.45), 71.0, {"degree": 2.5}), Cell(1, results(0.43, 0.46), None)]
    return [
        Line("individual", "x.py:individual", ["model.pair_stage=none"], baseline),
        Line("full", "x.py:full", [], ours),
        Line("normal", "x.py:normal", ["model.kind=normal"], [Cell(1, results(0.40, 0.39))], "seed 0 failed: no luck"),
    ]


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_table_in_markdown():
    text = report.markdown(TABLE, lines(), 2)
    grid = rows_of(text)
    assert grid[2] == [
        "Baseline",
        "`x.py:individual`",
        "2 of 2",
        "41.00 ± 1.41 / 51.00 ± 1.41",
        "-",
        "-",
        "70.00 / 80.00",
    ]
    assert grid[3] == [
        "Ours", "`x.py:full`", "2 of 2", "42.00 ± 1.41 / 52.00 ± 1.41", "43.50 ± 0.71 / 53.50 ± 0.71",
        "45.50 ± 0.71 / 55.50 ± 0.71", "74.50 / 83.00",
    ]  # fmt: skip
    assert grid[4][2:4] == ["1 of 2", "40.00 / 50.00"]  # one seed has no deviation
    # Gains are of the same seed, over the individual ranking of the baseline: 45 - 40 and 46 - 42.
    assert grid[7] == [
        "Ours", "+1.00 ± 0.00 / +1.00 ± 0.00", "+2.50 ± 0.71 / +2.50 ± 0.71", "+4.50 ± 0.71 / +4.50 ± 0.71", "+4.50 / +3.00",
    ]  # fmt: skip
    assert grid[8] == ["Other", "-2.00 / -2.00", "-5.00 / -5.00", "-3.00 / -3.00", "+2.00 / -1.00"]
    assert "people (seed 3): 1,320 queries, 1,600 gallery images, top 50 re-scored" in text
    assert "ours (seeds 1): Other 39.00 < Baseline 42.00 < Ours 46.00." in text  # seeds that all rows have
    assert "paper: Baseline 70.00 < Other 72.00 < Ours 74.50." in text
    assert "- Ours: a remark." in text and "- Other: seed 0 failed: no luck" in text


def test_where_the_first_row_has_pairs_each_ranking_is_compared_with_itself():
    first, second = lines()[1:]
    second = second._replace(cells=[Cell(0, results(0.40, 0.46))])
    assert report.gains(second, first, "individual", "mAP") == {0: pytest.approx(-1)}
    assert report.gains(second, first, "mixed", "mAP") == {0: pytest.approx(1)}
    assert report.gains(second, lines()[0], "mixed", "mAP") == {0: pytest.approx(6)}


def test_a_table_without_runs_says_so():
    empty = [line._replace(cells=[]) for line in lines()]
    text = report.markdown(TABLE, empty, 3)
    assert "No run has ended yet." in text and "0 of 3" in text and "nothing yet" in text


def test_data_sets_are_not_compared_with_each_other_and_those_without_data_are_named():
    table = TABLES["4"]
    lines = [
        Line("market1501", "market1501.py", [], [Cell(0, results(0.8, 0.9, {"check_counts": True}))]),
        Line("dukemtmc", "dukemtmc.py", [], [], "data absent: nowhere"),
        Line("msmt17", "msmt17.py"),
    ]
    text = report.markdown(table, lines, 1)
    assert "Gain" not in text and "Order" not in text
    assert rows_of(text)[2] == [
        "Market-1501", "`market1501.py`", "1 of 1", "80.00 / 90.00", "88.00 / 98.00", "90.00 / 100.00", "90.30 / 95.96",
    ]  # fmt: skip
    assert "- Market-1501: people (check_counts True): 1,320 queries" in text
    assert "- DukeMTMC-reID: data absent: nowhere" in text


def test_csv_has_a_line_for_each_run():
    found = list(csv.DictReader(io.StringIO(report.csv_text(TABLE, lines()))))
    assert [(line["run"], line["seed"]) for line in found] == [
        ("individual", "0"), ("individual", "1"), ("full", "0"), ("full", "1"), ("normal", "1"),
    ]  # fmt: skip
    first, ours = found[0], found[2]
    assert (first["individual_mAP"], first["mixed_mAP"], first["seconds"]) == ("0.4", "", "61.0")
    assert first["changes"] == "model.pair_stage=none" and ours["changes"] == ""
    assert (ours["mixed_mAP"], ours["conditional_rank5"], ours["degree"]) == ("0.45", "0.8", "2.5")
    assert (ours["paper_mAP"], ours["paper_rank1"], found[3]["seconds"]) == ("0.745", "0.83", "")
    assert (ours["evaluation_seconds"], ours["top_k"], ours["num_valid"]) == ("4.5", "50", "1319")


def sweep_rows(best):
    costs = {"seconds": 5.0, "describe": 3.0, "rescore": 1.5, "rank": 0.5}
    individual = {"mAP": 0.4, "rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "mINP": 0.1}
    with_pairs = {"individual": individual, "conditional": individual, "mixed": {**individual, "mAP": best}}
    return [
        {"top_k": 0, "pairs": 0, "individual": individual, **costs, "rescore": 0.0},
        {"top_k": 10, "pairs": 10, **with_pairs, **costs},
    ]


def test_the_sweep():
    sweeps = {0: sweep_rows(0.44), 2: sweep_rows(0.46)}
    full = Line("full", "x.py", [], [Cell(0, results(0.4, 0.44))])
    text = report.sweep_markdown(sweeps, full, 3)
    grid = rows_of(text)
    zero = "0.00 ± 0.00"
    assert grid[2] == ["0", "40.00 ± 0.00 / 50.00 ± 0.00", "-", "-", "0", "5.00 ± 0.00", zero]
    assert grid[3][3:] == ["45.00 ± 1.41 / 50.00 ± 0.00", "10", "5.00 ± 0.00", "1.50 ± 0.00"]
    assert "2 of 3 seeds" in text and "1,600 gallery images." in text
    found = list(csv.DictReader(io.StringIO(report.sweep_csv(sweeps))))
    assert [(line["seed"], line["top_k"], line["mixed_mAP"]) for line in found] == [
        ("0", "0", ""), ("0", "10", "0.44"), ("2", "0", ""), ("2", "10", "0.46"),
    ]  # fmt: skip
    assert (found[1]["rescore_seconds"], found[1]["describe_seconds"]) == ("1.5", "3.0")
    assert "No run has ended yet" in report.sweep_markdown({}, full._replace(cells=[]), 3)
