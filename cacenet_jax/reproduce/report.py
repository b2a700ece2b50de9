"""Markdown and CSV tables of our results and their spread, next to the paper's numbers. Computes no scores."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cacenet_jax.reproduce.tables import RANKINGS, SWEEP_TITLE, Score, Table

_METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
_HEALTH = ("loss", "accuracy", "positive_intra", "positive_cross", "degree")


_GAIN = "Gain over the first row, seed by seed; over its ranking of the same name, or its individual one if it has no other."


class Cell(NamedTuple):
    """One finished run of a table row.

    Attributes:
        seed: seed of the run.
        results: contents of results.json.
        seconds: time for training and evaluation, or None if the run was interrupted and resumed.
        health: metrics of the last training step.
    """

    seed: int
    results: Mapping[str, Any]
    seconds: float | None = None
    health: Mapping[str, float] = {}


class Line(NamedTuple):
    """Results of a table row.

    Attributes:
        run: name of the row's run and its folder.
        command: value of --config that trains the row.
        changes: `field=value` for each difference from the full model.
        cells: finished runs.
        missing: reason why runs are missing, or "" if there is none.
    """

    run: str
    command: str
    changes: Sequence[str] = ()
    cells: Sequence[Cell] = ()
    missing: str = ""


def compared(results: Mapping[str, Any]) -> str:
    """Return the ranking used for comparison: mixed if available, otherwise individual."""
    return "mixed" if "mixed" in results else "individual"


def scores(line: Line, ranking: str, metric: str) -> dict[int, float]:
    """Return a metric in per cent by seed, for runs that have the ranking."""
    return {cell.seed: 100 * cell.results[ranking][metric] for cell in line.cells if ranking in cell.results}


def gains(line: Line, first: Line, ranking: str, metric: str) -> dict[int, float]:
    """Return gains over the first row by seed, in percentage points.

    The baseline is the same ranking of the first row, or its individual ranking if the first row lacks the former.
    """
    base = scores(first, ranking, metric) or scores(first, "individual", metric)
    return {seed: value - base[seed] for seed, value in scores(line, ranking, metric).items() if seed in base}


def spread(values: Iterable[float], sign: str = "") -> str:
    """Format the mean and, for two or more values, the sample standard deviation."""
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


def _pair(mean_average: Mapping[int, float], rank1: Mapping[int, float], sign: str = "") -> str:
    if not mean_average:
        return "-"
    return f"{spread(mean_average.values(), sign)} / {spread(rank1.values(), sign)}"


def _of_paper(paper: Score | None, sign: str = "") -> str:
    return "-" if paper is None else f"{paper.mAP:{sign}.2f} / {paper.rank1:{sign}.2f}"


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def describe_data(cells: Iterable[Cell]) -> str:
    """Describe the data set and evaluation settings that the runs share."""
    results = next((cell.results for cell in cells), None)
    if results is None:
        return "No run has ended yet."
    options = ", ".join(f"{name} {value}" for name, value in sorted(results["options"].items()))
    text = f"{results['data']}{f' ({options})' if options else ''}: {results['num_query']:,} queries, "
    return text + (
        f"{results['num_gallery']:,} gallery images, top {results['top_k']} re-scored, pairs weigh {results['mix']} in the "
        "mixed ranking."
    )


def describe_network(model: Mapping[str, Any]) -> str:
    """Describe the network of the full model.

    Args:
        model: the fields of config.model, as a nested dictionary.
    """
    chosen = (("", model["backbone"], model["backbone_fields"]), ("pair stage ", model["pair_stage"], model["pair"]))
    parts = [
        f"{kind}{name}" + (f" ({', '.join(f'{field}={value}' for field, value in fields.items())})" if fields else "")
        for kind, name, fields in chosen
    ]
    return f"Network of the full model: {', '.join(parts)}."


def markdown(table: Table, lines: Sequence[Line], num_seeds: int, network: str = "") -> str:
    """Format a table with our results next to the paper's.

    Args:
        table: table of the paper.
        lines: results of each row.
        num_seeds: number of planned runs per row.
        network: description of the full model (`describe_network`).
    """
    out = [f"# Table {table.number}: {table.title}", ""]
    if table.one_data_set:
        # In tables 1 and 2 the first row has no pairs, so the description of re-scoring comes from another row.
        out += [describe_data(cell for line in reversed(lines) for cell in line.cells), network]
    out += [
        f"Paper: {table.data}. Per cent, mAP / rank-1; ours: mean ± sample standard deviation over seeds. A row is compared "
        "by its mixed ranking, one without pairs by its individual ranking.",
        "",
    ]
    head = ("Row", "`--config`", "seeds", "individual", "conditional", "mixed", "paper")
    body = []
    for row, line in zip(table.rows, lines, strict=True):
        cells = [_pair(scores(line, name, "mAP"), scores(line, name, "rank1")) for name in RANKINGS]
        body.append((row.label, f"`{line.command}`", f"{len(line.cells)} of {num_seeds}", *cells, _of_paper(row.paper)))
    out += _grid(head, body)
    notes = []
    if table.one_data_set:
        out += ["", _GAIN, "", *_gains(table, lines), "", *_orders(table, lines)]
    else:
        known = [(row, line) for row, line in zip(table.rows, lines, strict=True) if line.cells]
        notes += [f"- {row.label}: {describe_data(line.cells)}" for row, line in known]
    notes += [f"- {row.label}: {row.note}." for row in table.rows if row.note]
    notes += [f"- {row.label}: {line.missing}" for row, line in zip(table.rows, lines, strict=True) if line.missing]
    return "\n".join([*out, *(["", *notes] if notes else [])]).rstrip() + "\n"


def _gains(table: Table, lines: Sequence[Line]) -> list[str]:
    base = table.rows[0].paper
    body = []
    for row, line in zip(table.rows[1:], lines[1:], strict=True):
        of = lambda name, metric, line=line: gains(line, lines[0], name, metric)
        cells = [_pair(of(name, "mAP"), of(name, "rank1"), "+") for name in RANKINGS]
        paper = None
        if row.paper and base:
            paper = Score(row.paper.mAP - base.mAP, row.paper.rank1 - base.rank1)
        body.append((row.label, *cells, _of_paper(paper, "+")))
    return _grid(("Row", *RANKINGS, "paper"), body)


def _orders(table: Table, lines: Sequence[Line]) -> list[str]:
    """List the rows by increasing mAP, ours (over the seeds that all rows have in common) and the paper's."""
    known = {}
    for row, line in zip(table.rows, lines, strict=True):
        if line.cells:
            known[row.label] = scores(line, compared(line.cells[0].results), "mAP")
    seeds = set.intersection(*map(set, known.values())) if known else set()
    means = {label: statistics.mean(values[seed] for seed in seeds) for label, values in known.items() if seeds}
    ours = " < ".join(f"{label} {means[label]:.2f}" for label in sorted(means, key=lambda label: means[label]))
    published = sorted((row.paper.mAP, row.label) for row in table.rows if row.paper)
    paper = " < ".join(f"{label} {mAP:.2f}" for mAP, label in published)
    of = f" (seeds {', '.join(map(str, sorted(seeds)))})" if seeds else ""
    return [f"Order by mAP, ours{of}: {ours or 'nothing yet'}.", "", f"Order by mAP, paper: {paper}."]


def _csv(head: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in line] for line in body)
    return out.getvalue()


def csv_text(table: Table, lines: Sequence[Line]) -> str:
    """Return CSV with one row per run: metrics in [0, 1], seconds, and config overrides."""
    head = ["table", "row", "run", "seed", *(f"{name}_{metric}" for name in RANKINGS for metric in _METRICS)]
    plain = ["top_k", "mix", "num_query", "num_gallery", "num_valid", "step"]
    head += [*plain, "seconds", "evaluation_seconds", *_HEALTH, "paper_mAP", "paper_rank1", "data", "changes"]
    body = []
    for row, line in zip(table.rows, lines, strict=True):
        for cell in line.cells:
            results = cell.results
            values = [results.get(name, {}).get(metric) for name in RANKINGS for metric in _METRICS]
            values += [results.get(name) for name in plain] + [cell.seconds, results.get("seconds")]
            values += [cell.health.get(name) for name in _HEALTH]
            values += [round(value / 100, 6) for value in row.paper] if row.paper else [None, None]
            values += [results["data"]]
            body.append([table.number, row.label, line.run, cell.seed, *values, "; ".join(line.changes)])
    return _csv(head, body)


Sweep = Mapping[int, Sequence[Mapping[str, Any]]]  # seed -> rows


def by_top_k(sweeps: Sweep) -> dict[int, list[Mapping[str, Any]]]:
    """Group the rows of all seeds by K."""
    rows_of_k: dict[int, list[Mapping[str, Any]]] = {}
    for rows in sweeps.values():
        for row in rows:
            rows_of_k.setdefault(row["top_k"], []).append(row)
    return dict(sorted(rows_of_k.items()))


def sweep_markdown(sweeps: Sweep, full: Line, num_seeds: int) -> str:
    """Format scores and cost for each number of re-scored images."""
    out = [
        f"# {SWEEP_TITLE}",
        "",
        describe_data(full.cells).split(", top ")[0] + ".",
        f"The trained `{full.command}`, {len(sweeps)} of {num_seeds} seeds; nothing is trained again. Per cent, mAP / "
        "rank-1: mean ± sample standard deviation. Seconds: of an evaluation without compilation, and of re-scoring in it. "
        "The paper has no such table and does not name its K.",
        "",
    ]
    body = []
    for top_k, rows in by_top_k(sweeps).items():
        cells = []
        for name in RANKINGS:
            values = {m: {i: 100 * row[name][m] for i, row in enumerate(rows) if name in row} for m in ("mAP", "rank1")}
            cells.append(_pair(values["mAP"], values["rank1"]))
        costs = [spread(row[part] for row in rows) for part in ("seconds", "rescore")]
        body.append((str(top_k), *cells, str(rows[0]["pairs"]), *costs))
    head = ("K", *RANKINGS, "pairs a query", "seconds", "of them re-scoring")
    out += _grid(head, body)
    if full.missing:
        out += ["", f"- {full.missing}"]
    return "\n".join(out) + "\n"


def sweep_csv(sweeps: Sweep) -> str:
    """Return CSV with one row per seed and K."""
    costs = ["seconds", "describe", "rescore", "rank"]
    head = ["seed", "top_k", "pairs", *(f"{name}_{metric}" for name in RANKINGS for metric in _METRICS)]
    body = [
        [seed, row["top_k"], row["pairs"], *(row.get(n, {}).get(m) for n in RANKINGS for m in _METRICS),
         *(row[cost] for cost in costs)]
        for seed, rows in sweeps.items() for row in rows
    ]  # fmt: skip
    return _csv(head + [c if c == "seconds" else f"{c}_seconds" for c in costs], body)
