"""--mode=reproduce: training of the missing runs of a table, which is rewritten after each run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.distributed.processes import broadcast_from_writer, check_same, is_writer
from cacenet_jax.distributed.progress import track
from cacenet_jax.errors import UserError, WriteError
from cacenet_jax.reproduce import plot, report, runs, sweep
from cacenet_jax.reproduce.report import Cell, Line
from cacenet_jax.reproduce.runs import FULL, Plan
from cacenet_jax.reproduce.tables import SWEEP, table_of
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.stopping import StoppedError
from cacenet_jax.run.validation import validate
from cacenet_jax.run.workdir import write_file
from cacenet_jax.train import load

# Errors that abort one run but not the others: invalid input, or too little device memory.
_OF_ONE_RUN = (UserError, jax.errors.JaxRuntimeError)
# Errors of them that end the study: the next run would meet the same disk, and a stop is one of all runs.
_OF_ALL_RUNS = (WriteError, StoppedError)


class Study:
    """Selected tables, their runs and the results so far.

    Attributes:
        plan: planned runs.
        seeds: seeds of each run, in order.
        outcomes: outcomes of finished runs, by name and seed.
        sweeps: rows of the sweep, by seed.
        absent: reasons why a run's data are unavailable, by name.
        failed: one-line errors of failed runs, by name and seed.
    """

    def __init__(self, workdir: Path, config_file: str, tables: tuple[str, ...], plan: Plan, seeds: tuple[int, ...]):
        """Read existing results without writing anything.

        Raises:
            UserError: a folder contains a run with another config.
        """
        self.workdir, self.config_file, self.tables, self.plan, self.seeds = workdir, config_file, tables, plan, seeds
        self.outcomes: dict[tuple[str, int], runs.Outcome] = {}
        self.sweeps: dict[int, list[dict[str, Any]]] = {}
        self.absent: dict[str, str] = {}
        self.failed: dict[tuple[str, int], str] = {}
        self._data: dict[str, runs.DataState] = {}
        for run, config in plan.configs.items():
            for seed in seeds:
                outcome = runs.outcome(self.folder(run, seed), runs.with_seed(config, seed), self.data(run))
                if outcome is not None:
                    self.outcomes[run, seed] = outcome
        if SWEEP in tables:
            for seed in seeds:
                self._read_sweep(seed)

    def data(self, run: str) -> runs.DataState:
        """Return the data of a run as they are now; rows that share their data look once."""
        config = self.plan.configs[run]
        key = repr(config.data.to_dict())
        if key not in self._data:
            self._data[key] = runs.data_state(config)
        return self._data[key]

    def folder(self, run: str, seed: int) -> Path:
        """Return the workdir of a run."""
        return runs.folder_of(self.workdir, run, seed)

    def _read_sweep(self, seed: int) -> None:
        if (FULL, seed) in self.outcomes:
            rows = sweep.done(self.folder(FULL, seed), experiment.read(self.plan.configs[FULL]).evaluation)
            if rows is not None:
                self.sweeps[seed] = rows

    def train(self, run: str, seed: int) -> bool:
        """Train and score a run; return False if it was already finished.

        An error of the run is recorded. It is raised only in a multi-process run, where other processes would wait.
        """
        if broadcast_from_writer("done", float((run, seed) in self.outcomes)):
            return False
        config = runs.with_seed(self.plan.configs[run], seed)
        try:
            validate(config)
            runs.run(config, self.folder(run, seed))
        except _OF_ALL_RUNS:
            raise
        except _OF_ONE_RUN as error:
            self._keep(run, seed, error)
            return True
        if is_writer():
            self._data.clear()  # prepared by now
            outcome = runs.outcome(self.folder(run, seed), config, self.data(run))
            assert outcome is not None, f"{run}, seed {seed} left no results"
            self.outcomes[run, seed] = outcome
        return True

    def sweep(self, seed: int) -> bool:
        """Run the sweep for one seed of the full model; return False if there was nothing to do."""
        todo = bool(broadcast_from_writer("sweep", float((FULL, seed) in self.outcomes and seed not in self.sweeps)))
        if todo:
            _say(f"\n== the top K of {FULL}, seed {seed}")
            try:
                trained = load(runs.with_seed(self.plan.configs[FULL], seed), self.folder(FULL, seed))
                self.sweeps[seed] = sweep.sweep(trained, self.folder(FULL, seed))
            except _OF_ALL_RUNS:
                raise
            except _OF_ONE_RUN as error:
                self._keep(SWEEP, seed, error)
        return todo

    def _keep(self, run: str, seed: int, error: Exception) -> None:
        if jax.process_count() > 1:
            raise error
        self.failed[run, seed] = " ".join(str(error).split())
        _say(f"error in {run}, seed {seed}: {self.failed[run, seed]}")

    def line(self, run: str, command: str) -> Line:
        """Return the results of a table row."""
        cells = [
            Cell(seed, outcome.results, outcome.seconds, outcome.health)
            for seed in self.seeds
            if (outcome := self.outcomes.get((run, seed))) is not None
        ]
        full = self.plan.full
        missing = [f"data absent: {self.absent[run]}"] if run in self.absent else []
        missing += [f"seed {seed} failed: {text}" for (name, seed), text in self.failed.items() if name == run]
        return Line(run, command, runs.changes(self.plan.configs[run], full), cells, "; ".join(missing))

    def write(self, run: str | None = None) -> None:
        """Write the tables that contain a run, or all tables if it is None. Each file is replaced atomically."""
        if not is_writer():
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        for number in self.tables:
            if number == SWEEP:
                if run in (None, FULL):
                    self._write_sweep()
            elif run is None or run in self._runs_of(number):
                lines = self._lines(number)
                network = report.describe_network(to_dict(self.plan.full)["model"])
                table = table_of(number)
                name = table.name
                write_file(self.workdir / f"{name}.md", report.markdown(table, lines, len(self.seeds), network))
                write_file(self.workdir / f"{name}.csv", report.csv_text(table, lines))
                plot.plot_table(table, lines, self.workdir / f"{name}.png")

    def _runs_of(self, number: str) -> list[str]:
        return [self.plan.run_of[number, position] for position in range(len(table_of(number).rows))]

    def _lines(self, number: str) -> list[Line]:
        here = Path(self.config_file)
        commands = (
            f"{here.with_name(row.config + '.py')}" if row.config else f"{here}:{row.row}"
            for row in table_of(number).rows
        )
        return [self.line(run, command) for run, command in zip(self._runs_of(number), commands, strict=True)]

    def _write_sweep(self) -> None:
        full = self.line(FULL, self.config_file)
        failed = [f"seed {seed} failed: {text}" for (name, seed), text in self.failed.items() if name == SWEEP]
        full = full._replace(missing="; ".join([full.missing, *failed]).removeprefix("; "))
        name = f"table_{SWEEP}"
        write_file(self.workdir / f"{name}.md", report.sweep_markdown(self.sweeps, full, len(self.seeds)))
        write_file(self.workdir / f"{name}.csv", report.sweep_csv(self.sweeps))
        plot.plot_sweep(self.sweeps, self.workdir / f"{name}.png")


def reproduce(
    config: ConfigDict,
    workdir: str | Path,
    tables: tuple[str, ...],
    seeds: tuple[int, ...],
    config_file: str = "configs/synthetic_ablation.py",
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Train and score the unfinished rows of the selected tables, and write the tables.

    Rows are trained seed by seed, so an interrupted study has complete tables with fewer seeds. Repeating the call
    resumes an interrupted study. Rows without data are noted in the table, and an error in one row does not affect the
    others.

    Args:
        config: config of the full model, with command-line overrides applied.
        workdir: output folder for table_<t>.md, .csv and .png, and for the workdir of each run, runs/<row>/seed_<n>.
        tables: table names, from `parse_tables`.
        seeds: values of config.seed for each row.
        config_file: file that `config` was loaded from.
        overrides: command-line overrides, applied to rows with their own config file as in `runs.make_plan`.

    Raises:
        UserError: before anything is written, if a value is invalid, a folder contains a run with another config, or no
            row has data; at the end, if any run failed.
    """
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    plan = runs.make_plan(config, tables, config_file, overrides)
    study = Study(workdir, config_file, tables, plan, seeds)
    study.absent = _absent(study)
    check_same("data of the rows", dict.fromkeys(study.absent, "absent"))  # all processes must train the same rows
    ready = [run for run in plan.configs if run not in study.absent]
    if not ready:
        raise UserError(next(iter(study.absent.values())))
    study.write()
    order = [(run, seed) for run, seed in runs.training_order(plan, seeds) if run in ready]
    numbered = track(enumerate(order, start=1), "reproducing", len(order), "runs")
    for number, (run, seed) in numbered:
        if (run, seed) not in study.outcomes:
            _say(f"\n== {run}, seed {seed}: run {number} of {len(order)}")
        changed = study.train(run, seed)
        if run == FULL and SWEEP in tables:
            changed |= study.sweep(seed)
        if changed:
            study.write(run)
    _tell(study, len(order))


def _absent(study: Study) -> dict[str, str]:
    """Return the reason for each run whose data set is not available."""
    states = {run: study.data(run) for run in study.plan.configs}
    return {run: state.absent for run, state in states.items() if state.absent}


def _tell(study: Study, count: int) -> None:
    """Print the tables, and raise UserError if any run failed."""
    if is_writer():
        for number in study.tables:
            print(f"\n{(study.workdir / f'table_{number}.md').read_text()}")
        for run, reason in study.absent.items():
            print(f"{run}: not run, data absent: {reason}")
        print(f"Written: {study.workdir}/table_*.md, .csv, .png", flush=True)
    if study.failed:
        (run, seed), text = next(iter(study.failed.items()))
        others = f", and {len(study.failed) - 1} more, named in the tables" if len(study.failed) > 1 else ""
        raise UserError(
            f"{len(study.failed)} of {count} runs failed, the others are in the tables: {run}, seed {seed}: {text}{others}"
        )


def _say(text: str) -> None:
    if is_writer():
        print(text, flush=True)
