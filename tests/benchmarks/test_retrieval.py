"""The re-scoring benchmark at a small size."""

from benchmarks import retrieval

SMALL = [
    "--nodes=6",
    "--channels=16",
    "--embed=8",
    "--gallery=12",
    "--pairs=24",
    "--top_k=6",
    "--batch=4",
    "--repeats=1",
]


def test_reports_each_case_and_its_limits(tmp_path, capsys):
    assert retrieval.main([*SMALL, "--min_pairs=1", f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("resident", "streamed", "clues", "holds"))
    assert (tmp_path / "retrieval.json").exists()


def test_a_missed_bound_is_the_exit_status(capsys):
    assert retrieval.main([*SMALL, "--min_pairs=1e12"]) == 1
    assert "holds" not in capsys.readouterr().out
