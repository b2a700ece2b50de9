"""The benchmark of sizes at tiny ones: its rows, and the bound that each kind of row has."""

import json

import pytest

from benchmarks import ranking_size

SMALL = ["--queries=20", "--gallery", "50", "90", "--rerank", "30x200", "12x40", "--features=8", "--check"]


def test_each_size_is_measured_in_a_process_of_its_own(tmp_path, capsys):
    assert ranking_size.main(["--queries=20", "--gallery", "90", "--rerank", "--features=8", f"--out={tmp_path}"]) == 0
    (row,) = json.loads((tmp_path / "ranking_size.json").read_text())["sizes"]
    assert (row["case"], row["queries"], row["gallery"]) == ("ranking", 20, 90)
    assert 0 < row["s"] < 60 and row["processor s"] > 0
    assert 0.02 < row["peak GB"] < 2  # the interpreter and JAX


def test_the_re_rankings_run_at_tiny_sizes(capsys):
    for case in ("k-reciprocal", "k-reciprocal features"):
        assert ranking_size.main([f"--case={case}", "--rerank", "12x40", "--features=8"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["seconds"] > 0


@pytest.fixture
def measured(monkeypatch):
    """Rows that just keep the default bounds, which a test may change."""
    values = {
        ("ranking", 20, 50): (1.0, 3.9), ("ranking", 20, 90): (99.0, 3.9), ("k-reciprocal", 12, 40): (9.9, 2.4),
        ("k-reciprocal features", 12, 40): (9.9, 2.4), ("k-reciprocal features", 30, 200): (99.0, 15.9),
    }  # fmt: skip

    def measure(case, num_query, num_gallery, features):
        seconds, gigabytes = values[case, num_query, num_gallery]
        return {"seconds": seconds, "processor": seconds, "gb": gigabytes}

    monkeypatch.setattr(ranking_size, "measure", measure)
    monkeypatch.setattr(ranking_size, "MATRIX_IMAGES", 100)
    return values


def test_bounds_that_hold_are_code_0(measured, capsys):
    assert ranking_size.main(SMALL) == 0
    out = capsys.readouterr().out
    assert out.count("holds") == 7 and "MISSED" not in out


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (("ranking", 20, 90), (1.0, 4.1), "GB of ranking, 20 x 90"),
        (("k-reciprocal", 12, 40), (10.1, 2.4), "seconds of k-reciprocal, 12 x 40"),
        (("k-reciprocal", 12, 40), (1.0, 2.6), "GB of k-reciprocal, 12 x 40"),
        (("k-reciprocal features", 12, 40), (1.0, 2.6), "GB of k-reciprocal features, 12 x 40"),
        (("k-reciprocal features", 30, 200), (1.0, 16.1), "GB of k-reciprocal features, 30 x 200"),
    ],
)
def test_a_broken_bound_is_code_1_and_named(row, value, message, measured, capsys):
    measured[row] = value
    assert ranking_size.main(SMALL) == 1
    (missed,) = [line for line in capsys.readouterr().out.splitlines() if "MISSED" in line]
    assert missed.startswith(f"check: {message} ")


def test_a_ranking_that_differs_from_a_full_sort_fails(monkeypatch):
    monkeypatch.setattr(ranking_size, "full_argsort", lambda *args: 0.0)
    with pytest.raises(RuntimeError, match="differs from the full sort"):
        ranking_size.main(["--case=ranking", "--rerank", "20x90", "--features=8"])


def test_a_case_that_fails_ends_the_benchmark(tmp_path):
    with pytest.raises(SystemExit, match="k-reciprocal at 0 x 5 ended with exit code 1"):
        ranking_size.measure("k-reciprocal", 0, 5, 8)
