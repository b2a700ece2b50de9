"""The paper's numbers are the paper's, and what --table and --seeds take."""

import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.models.pair_stages.conditional import alignment
from cacenet_jax.reproduce import plot, report, tables, variants
from cacenet_jax.reproduce.report import Line
from cacenet_jax.reproduce.tables import SWEEP, TABLES, check_rows_are_free, parse_seeds, parse_tables
from cacenet_jax.reproduce.variants import ROWS

# Tables 1 to 5 as they are printed (arXiv 2009.05250): of 4 and 5 the rows of CACE-Net.
PRINTED = {
    "1": """Individual Feature Embedding 77.03 87.84
            + Visual Clue Alignment 78.29 89.68
            + Individual-GCN 79.19 89.77
            + Pairwise-GCN (Normal) 78.58 89.77
            + Pairwise-GCN (Discrepancy-based) 81.29 90.89""",
    "2": """No Alignment (Baseline) 77.03 87.84
            Part Alignment 78.39 89.45
            Top-K Similarity 79.30 89.72
            Fully Connect 80.19 89.90
            Semantic Alignment 80.64 90.08
            Correspondence Attention 81.29 90.89""",
    "3": """Cross Entropy (Baseline) 88.57 94.74
            Mix-up 0.95 89.44 95.75
            Mix-up 0.9 90.30 95.96
            Mix-up 0.8 89.56 95.84
            Mix-up 0.7 88.72 95.43
            Mix-up 0.6 85.67 94.83""",
    "4": "CACE-Net Market-1501 90.3 95.96\n CACE-Net DukeMTMC-reID 81.29 90.89\n CACE-Net MSMT-17 62.0 83.54",
    "5": "CACE-Net 50.8 58.8",
}


@pytest.mark.parametrize("number", PRINTED)
def test_numbers_are_those_that_are_printed(number):
    printed = [tuple(float(word) for word in line.split()[-2:]) for line in PRINTED[number].splitlines()]
    ours = [row.paper for row in TABLES[number].rows if row.row != "topk"]  # our second reading of one printed row
    assert ours == printed


def test_the_row_that_is_read_in_two_ways_has_its_number_twice():
    papers = {row.row: row.paper for row in TABLES["2"].rows}
    assert papers["topk"] == papers["top1"] == (79.30, 89.72)


def test_alpha_of_table_3_is_the_one_that_is_printed():
    alphas = [ROWS[row.row]["loss.alpha"] for row in TABLES["3"].rows]
    assert alphas == [1.0, 0.95, 0.9, 0.8, 0.7, 0.6]
    assert all(str(alpha) in row.label for alpha, row in zip(alphas[1:], TABLES["3"].rows[1:], strict=True))


def test_rows_are_all_of_one_kind_and_known():
    for table in TABLES.values():
        assert len({row.config is None for row in table.rows}) == 1
        assert all(row.row in ROWS for row in table.rows)
    used = {row.row for table in TABLES.values() for row in table.rows}
    assert used == set(ROWS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", ("1",)),
        ("topk", (SWEEP,)),
        ("3, 1", ("1", "3")),
        ("all", ("1", "2", "3", "4", "5", SWEEP)),
        ("2,", ("2",)),
    ],
)
def test_tables(text, found):
    assert parse_tables(text) == found


@pytest.mark.parametrize("text", [None, "", "6", "1,6", "one", "full"])
def test_no_table(text):
    with pytest.raises(UserError, match=r"--table: found .*expected 1, 2, 3, 4, 5, topk or all"):
        parse_tables(text)


@pytest.mark.parametrize(
    ("text", "found"), [("3", (0, 1, 2)), ("1", (0,)), ("0,4,7", (0, 4, 7)), ("7,", (7,)), ("5, 2", (5, 2))]
)
def test_seeds(text, found):
    assert parse_seeds(text) == found


@pytest.mark.parametrize("text", ["0", "-1", "", ",", "1,1", "1.5", "1,,2", "a", "²"])
def test_no_seeds(text):
    with pytest.raises(UserError, match="--seeds: found"):
        parse_seeds(text)


def test_rows_and_seed_belong_to_the_mode():
    check_rows_are_free("configs/x.py", "", ["epochs"])
    check_rows_are_free("configs/x.py", "full", [])
    check_rows_are_free("configs/tiny.py", "market1501", [])  # an argument of another kind
    with pytest.raises(UserError, match=r"--config: found variant 'normal'.*--config=configs/x.py, "):
        check_rows_are_free("configs/x.py", "normal", [])
    with pytest.raises(UserError, match=r"--config.seed: given .*--seeds"):
        check_rows_are_free("configs/x.py", "", ["seed"])


def test_a_strategy_of_ones_own_brings_its_row(monkeypatch, tmp_path):
    """Table 2 grows by it, without numbers of the paper; its name is a variant of every config."""
    monkeypatch.setattr(alignment.STRATEGIES, "_values", dict(alignment.STRATEGIES._values))
    alignment.STRATEGIES.register("mine", alignment.Strategy("mine", alignment.full_keys, row="Mine"))
    assert variants.changes("mine") == {"model.pair.alignment": "mine"}
    table = tables.table_of("2")
    assert (
        table.rows[:-1] == tables.TABLES["2"].rows and table.rows[-1].label == "Mine" and table.rows[-1].paper is None
    )
    assert tables.table_of("1") == tables.TABLES["1"]
    lines = [Line(row.row, f"x.py:{row.row}", [], []) for row in table.rows]
    text = report.markdown(table, lines, 1)
    assert "| Mine | `x.py:mine` | 0 of 1 | - | - | - | - |" in text
    assert "Mine" not in text.split("Order by mAP, paper")[1]
    plot.plot_table(table, lines, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
