"""The runs behind the tables: which configs they are, which are done, and one of them from its config to its results."""

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

from cacenet_jax import train
from cacenet_jax.data.builders.prepare import find_prepared
from cacenet_jax.distributed.processes import is_writer
from cacenet_jax.errors import UserError
from cacenet_jax.reproduce import variants
from cacenet_jax.reproduce.tables import SWEEP, table_of
from cacenet_jax.run.choices import flatten, override, to_dict
from cacenet_jax.run.completion import complete
from cacenet_jax.run.records import effective
from cacenet_jax.run.workdir import check_workdir, write_json

FULL = "full"  # the run that the sweep scores
# Fields of config.eval that change a score; the others are about memory and speed.
_SCORES = ("top_k", "camera_filter", "mix", "flip", "map_dtype", "checkpoint")
_HEALTH = ("loss", "accuracy", "positive_intra", "positive_cross", "degree")


class Plan(NamedTuple):
    """Runs of a study, each trained once a seed.

    Attributes:
        full: config of the full model.
        configs: run to config, in the order of training. Its name is its folder's.
        run_of: (table, position of the row) to run. Rows that are one config have one run.
    """

    full: ConfigDict
    configs: dict[str, ConfigDict]
    run_of: dict[tuple[str, int], str]


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
        results: what results.json holds.
        health: what the last training step logged: loss, accuracy and, with pairs, the state of the graph.
        seconds: of training and evaluation; None where the run was stopped and continued.
    """

    results: dict[str, Any]
    health: dict[str, float]
    seconds: float | None


def make_plan(
    config: ConfigDict, tables: tuple[str, ...], config_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> Plan:
    """The runs of some tables.

    Args:
        config: of the full model, fields of the command line included. Rows of tables 1 to 3 change it.
        tables: numbers, and topk.
        config_file: where `config` came from; the configs of tables 4 and 5 lie in the same folder.
        overrides: fields of the command line, dotted. Rows that are data sets take them too, but keep their own
            data.name and data.options.

    Raises:
        UserError: a config of table 4 or 5 is missing.
    """
    # A run's name must not depend on what else is asked for, so every row of the study is named in one order.
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
            configs.setdefault(run, catalogue.get(run, chosen))  # also where a row spells out a default
            run_of[number, position] = run
    # The full model first: every table and the sweep have it.
    order = sorted(configs, key=lambda run: run != FULL)
    return Plan(catalogue[FULL], {run: configs[run] for run in order}, run_of)


def training_order(plan: Plan, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """Runs and seeds, one seed after the other; other data sets, which take much longer, after all of the first."""
    known = variants.rows()
    rows = [run for run in plan.configs if run in known]
    others = [run for run in plan.configs if run not in known]
    return [(run, seed) for part in (rows, others) for seed in seeds for run in part]


def _key(config: ConfigDict) -> str:
    """Return a text that two rows share where they are one experiment."""
    return json.dumps(effective(to_dict(config)), sort_keys=True)


def _data_set(path: Path, overrides: Mapping[str, Any]) -> ConfigDict:
    if not path.is_file():
        raise UserError(
            f"{path}: found no such file, expected the configs of tables 4 and 5 beside the one that --config names; name "
            "one in that folder, or leave these tables out"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = ("data.name", "data.options.")
    given = {field: value for field, value in overrides.items() if not field.startswith(own)}
    return complete(override(module.get_config(), given))


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy of a config with another seed."""
    config = copy.deepcopy(config)
    config.seed = seed
    return config


def folder_of(workdir: Path, run: str, seed: int) -> Path:
    """The work dir of one run."""
    return workdir / "runs" / run / f"seed_{seed}"


def changes(plan_config: ConfigDict, full: ConfigDict) -> list[str]:
    """`field=value` of each field in which a row's config differs from the full model's."""
    base = dict(flatten(to_dict(full)))
    return [f"{field}={value}" for field, value in flatten(to_dict(plan_config)) if base.get(field, value) != value]


def why_no_data(config: ConfigDict) -> str | None:
    """Return the reason why the data set of a config is not available, None if it is."""
    data = config.data
    try:
        find_prepared(data.name, root=data.root, data_dir=data.dir, options=data.options.to_dict())
    except UserError as error:
        return str(error)
    return None


def outcome(folder: Path, config: ConfigDict) -> Outcome | None:
    """The outcome of a run that is done, None where it is not, or was scored in another way than the config says.

    --mode=evaluate writes results too: of a run that was stopped, or on other data, they are not the run's.

    Raises:
        UserError: the folder holds a run of another config; or a file that is no JSON.
    """
    check_workdir(folder, to_dict(config))
    results = _read(folder / "results.json")
    if results is None:
        return None
    recorded = (_read(folder / "config.json") or {}).get("eval", {})
    current = to_dict(config)["eval"]
    health = _health(folder / "metrics.jsonl")
    data = to_dict(config)["data"]
    other_data = any(
        results.get(field, data[of]) != data[of] for field, of in (("data", "name"), ("options", "options"))
    )
    if other_data or health.pop("step", 0) < _last_step(folder, config):
        return None
    scored = {**recorded, "mix": results["mix"]}
    # What was cut to the gallery is what a larger one gives.
    scored["top_k"] = current["top_k"] if results["top_k"] == min(current["top_k"], results["num_gallery"]) else None
    if any(scored.get(field) != current[field] for field in _SCORES):
        return None
    seconds = (_read(folder / "reproduce.json") or {}).get("seconds")
    return Outcome(results, health, seconds)


def _last_step(folder: Path, config: ConfigDict) -> int:
    """The step that a run ends with; 0 where it did not record its data."""
    images = (_read(folder / "data.json") or {}).get("images")
    batch = config.data.num_ids * config.data.images_per_id
    return 0 if images is None else config.epochs * max(images // batch, 1)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(
            f"{path}: found no JSON ({error}), expected what a run wrote; remove {path.parent} to run it again"
        ) from error


def _health(path: Path) -> dict[str, float]:
    """The last training metrics of a run and their step."""
    last: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        if "loss" in values:
            last = values
    return {name: float(last[name]) for name in ("step", *_HEALTH) if name in last}


def run(config: ConfigDict, folder: Path) -> None:
    """Trains and scores one run, from where it was stopped.

    In this process: nothing is left running when it is killed, and a later run finds the compiled programs in the cache.

    Raises:
        UserError: as `cacenet_jax.train.train`.
    """
    if is_writer():  # of other settings, and no longer true once the new ones are recorded
        (folder / "results.json").unlink(missing_ok=True)
    continued = (folder / "config.json").exists()
    start = time.monotonic()
    try:
        train.train(config, folder)
    finally:
        _forget_programs()
    if is_writer():
        write_json(folder / "reproduce.json", {"seconds": None if continued else time.monotonic() - start})


def _forget_programs() -> None:
    """Frees the compiled programs of a run: those of forty would fill the memory."""
    jax.clear_caches()
    gc.collect()
