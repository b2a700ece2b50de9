"""Runs behind the tables: planning, lookup of finished runs, and execution of a single run."""

import copy
import gc
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cacenet_jax import experiment, train
from cacenet_jax.data import json_files
from cacenet_jax.data.builders import Prepared
from cacenet_jax.data.builders.prepare import find_prepared
from cacenet_jax.distributed.processes import is_writer
from cacenet_jax.errors import UserError
from cacenet_jax.reproduce import variants
from cacenet_jax.reproduce.tables import SWEEP, table_of
from cacenet_jax.run.choices import flatten, override, to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.fingerprint import SCORED_BY, of_checkpoint, of_data, recorded_marks
from cacenet_jax.run.metric_writer import read_metrics
from cacenet_jax.run.records import effective
from cacenet_jax.run.workdir import check_workdir, write_json

FULL = "full"  # run that the sweep evaluates
_HEALTH = ("loss", "accuracy", "positive_intra", "positive_cross", "degree")


class Plan(NamedTuple):
    """Runs of a study, each trained once per seed.

    Attributes:
        full: config of the full model.
        configs: configs by name of the run, in training order. The name is also that of the run's folder.
        run_of: names of runs by (table, position of the row). Rows with equal configs share a run.
    """

    full: ConfigDict
    configs: dict[str, ConfigDict]
    run_of: dict[tuple[str, int], str]


class Outcome(NamedTuple):
    """Outcome of a finished run.

    Attributes:
        results: contents of results.json.
        health: metrics of the last training step: loss, accuracy and, with pairs, graph statistics.
        seconds: time for training and evaluation, or None if the run was interrupted and resumed.
    """

    results: dict[str, Any]
    health: dict[str, float]
    seconds: float | None


def make_plan(
    config: ConfigDict, tables: tuple[str, ...], config_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> Plan:
    """Plan the runs of the selected tables.

    Args:
        config: config of the full model, with command-line overrides applied. Rows of tables 1 to 3 are variants of it.
        tables: table numbers, possibly with topk.
        config_file: file that `config` was loaded from. The configs of tables 4 and 5 must be in the same folder.
        overrides: command-line overrides by dotted field. They are also applied to rows with their own config file,
            except for data.name and data.options.

    Raises:
        UserError: a config of table 4 or 5 is missing.
    """
    config = variants.with_paper_stage(config, overrides or {})
    # All rows are named in a fixed order, so a run's name does not depend on the selected tables.
    catalogue = {row: variants.apply(config, row) for row in variants.rows()}
    names: dict[str, str] = {}
    for name, changed in catalogue.items():
        names.setdefault(_key(changed), name)
    configs: dict[str, ConfigDict] = {}
    run_of: dict[tuple[str, int], str] = {}
    for number in tables:
        if number == SWEEP:
            configs[FULL] = catalogue[FULL]
            continue
        for position, row in enumerate(table_of(number).rows):
            if row.config is None:
                chosen = catalogue[row.row]
            else:
                chosen = _data_set(Path(config_file).parent / f"{row.config}.py", overrides or {})
                names.setdefault(_key(chosen), row.config)
            run = names[_key(chosen)]
            configs.setdefault(run, catalogue.get(run, chosen))  # the same config even if a row spells out a default
            run_of[number, position] = run
    # The full model comes first because most tables and the sweep include it.
    order = sorted(configs, key=lambda run: run != FULL)
    return Plan(catalogue[FULL], {run: configs[run] for run in order}, run_of)


def training_order(plan: Plan, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """Return (run, seed) pairs, seed by seed. Runs on other data sets come last because they take much longer."""
    known = variants.rows()
    rows = [run for run in plan.configs if run in known]
    others = [run for run in plan.configs if run not in known]
    return [(run, seed) for part in (rows, others) for seed in seeds for run in part]


def _key(config: ConfigDict) -> str:
    """Return a string that is equal for rows that describe the same experiment."""
    return json.dumps(effective(to_dict(config)), sort_keys=True)


def _data_set(path: Path, overrides: Mapping[str, Any]) -> ConfigDict:
    if not path.is_file():
        raise UserError(
            f"{path}: found no such file, expected the configs of tables 4 and 5 beside the one that --config names; name "
            "one in that folder, or leave these tables out"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = ("data.name", "data.options.")
    given = {field: value for field, value in overrides.items() if not field.startswith(own)}
    return complete(override(module.get_config(), given))


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Return a copy of a config with another seed."""
    config = copy.deepcopy(config)
    config.seed = seed
    return config


def folder_of(workdir: Path, run: str, seed: int) -> Path:
    """Return the workdir of a run."""
    return workdir / "runs" / run / f"seed_{seed}"


def changes(plan_config: ConfigDict, full: ConfigDict) -> list[str]:
    """Return `field=value` for each field in which a row's config differs from the full model's."""
    base = dict(flatten(to_dict(full)))
    return [f"{field}={value}" for field, value in flatten(to_dict(plan_config)) if base.get(field, value) != value]


class DataState(NamedTuple):
    """Data of a config as they are now.

    Attributes:
        train: `Subset.summary` of the training images, or None if the data are not prepared yet.
        scored: hash of query and gallery (`fingerprint.of_data`), likewise.
        absent: reason why the data are not available, or "" if they are.
    """

    train: dict[str, Any] | None
    scored: str | None
    absent: str = ""


def data_state(config: ConfigDict) -> DataState:
    """Look at the data of a config without preparing them."""
    data = experiment.read(config).data
    try:
        directory = find_prepared(
            data.name, root=data.root, data_dir=data.dir, options=data.options, on_error=data.on_error
        )
        if not Path(directory).is_dir():
            return DataState(None, None)
        prepared = Prepared(data.name, directory)
        return DataState(train.cut_training(data, prepared).train.summary(), of_data(prepared))
    except UserError as error:
        return DataState(None, None, str(error))


def outcome(folder: Path, config: ConfigDict, data: DataState) -> Outcome | None:
    """Return the outcome of a finished run, or None if it is unfinished or has no results for this data and config.

    --mode=evaluate also writes results, possibly for an unfinished run or other data; these do not count.

    Args:
        folder: workdir of the run.
        config: config of the run.
        data: current state of its data, from `data_state`.

    Raises:
        UserError: the folder contains a run with another config, or a file that is not valid JSON.
    """
    check_workdir(folder, to_dict(config))
    if data.train is None or _read(folder / "data.json") != data.train:
        return None
    health = _health(folder / "metrics.jsonl")
    if health.pop("step", 0) < _last_step(folder, config):
        return None
    for path in (folder / "results.json", *sorted(folder.glob("results_*.json"))):
        results = _read(path)
        if results is not None and _counts(results, folder, config, data):
            seconds = json_files.number((_read(folder / "reproduce.json") or {}).get("seconds"))
            return Outcome(results, health, seconds)
    return None


def _counts(results: dict[str, Any], folder: Path, config: ConfigDict, data: DataState) -> bool:
    """Return True if results are of a run's data, network and settings."""
    marks = recorded_marks(results)
    step, num_gallery = (json_files.number(results.get(name)) for name in ("step", "num_gallery"))
    if marks is None or step is None or num_gallery is None or marks["data"] != data.scored:
        return False
    if of_checkpoint(folder, int(step)) not in (None, marks["network"]):
        return False
    evaluation = config.eval
    if evaluation.checkpoint == "last" and step != _last_step(folder, config):
        return False
    # A top_k beyond the gallery gives the same ranking as its size.
    scored = json_files.number(marks["settings"].get("top_k"))
    settings = marks["settings"] | {"top_k": scored and min(scored, num_gallery)}
    top_k = min(evaluation.top_k, num_gallery)
    return settings == {**{name: evaluation[name] for name in SCORED_BY}, "top_k": top_k}


def _last_step(folder: Path, config: ConfigDict) -> int:
    """Return the last step of a run, or 0 if the run has not recorded its data."""
    images = (_read(folder / "data.json") or {}).get("images")
    batch = config.data.num_ids * config.data.images_per_id
    return 0 if images is None else config.epochs * max(images // batch, 1)


def _read(path: Path) -> dict[str, Any] | None:
    return json_files.read(path, f"remove {path.parent} to run it again")


def _health(path: Path) -> dict[str, float]:
    """Return the last training metrics of a run and their step."""
    last: dict[str, float] = {}
    for values in read_metrics(path):
        if "loss" in values:
            last = values
    numbers = {name: json_files.number(last.get(name)) for name in ("step", *_HEALTH)}
    return {name: value for name, value in numbers.items() if value is not None}


def run(config: ConfigDict, folder: Path) -> None:
    """Train and score one run, resuming it if it was interrupted.

    The run takes place in this process, so no child process survives if it is killed. Later runs reuse compiled
    programs from the cache.

    Raises:
        UserError: same as for `cacenet_jax.train.train`.
    """
    continued = (folder / "config.json").exists()
    start = time.monotonic()
    try:
        train.train(config, folder)
    finally:
        _forget_programs()
    if is_writer():
        write_json(folder / "reproduce.json", {"seconds": None if continued else time.monotonic() - start})


def _forget_programs() -> None:
    """Free the compiled programs of a run; over dozens of runs they would exhaust memory."""
    jax.clear_caches()
    gc.collect()
