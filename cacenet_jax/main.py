"""Person re-identification with CACE-Net: train, evaluate, visualise and export networks.

Usage: cacenet --config=configs/NAME.py[:VARIANT] --workdir=DIR [--mode=MODE] [--config.FIELD=VALUE ...]
(or python -m cacenet_jax.main with the same flags)

Modes:
  train      train and evaluate a network (default); rerun the same command to resume an interrupted run
  import     create a workdir from a published checkpoint of a complete network, given by --config.pretrained
  evaluate   evaluate a trained network on its test split, or on the data set --config.eval.data
  visualize  draw feature maps, correspondences and ranked lists of a trained network
  export     export a trained network for use without this package
  compare    compare two images, A.jpg B.jpg: do they show one person, and why
  calibrate  learn probabilities and thresholds for the distances of a network from labelled images
  index      embed photographs, --images=FOLDER or MANIFEST.csv, into --index=PLACE; again: only what changed
  search     find a person, --query=IMAGE or a folder of one person's images, in --index=PLACE
  group      group the photographs of --index=PLACE by person, and tell how many people there are
  serve      a local page to search --index=PLACE, to see why images match, and to mark matches
  reproduce  train the networks for the tables of the paper selected by --table, and write the tables

train and reproduce require --config; import can do without, and the other modes read config.json in --workdir, where
compare, calibrate, index, search, group and serve also take an export and, except calibrate, a published checkpoint. Any
field of cacenet_jax/config.py can be overridden, for example --config.eval.top_k=50. Data sets, backbones and pair stages
have additional fields: --config.data.options.seed=3, --config.model.backbone_fields.width=32,
--config.model.pair.clue_weight=0.
"""

import functools
import logging as standard_logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cacenet_jax.errors import UserError, print_line, writing
from cacenet_jax.reproduce.tables import check_rows_are_free, parse_seeds, parse_tables
from cacenet_jax.run import stopping
from cacenet_jax.run.command_line import (
    CONFIG_WORDS,
    READ_NETWORK,
    READ_WORKDIR,
    CommandLine,
    check_distributed,
    parse,
    show_help_of,
)

MODES = (
    "train",
    "import",
    "evaluate",
    "visualize",
    "export",
    "compare",
    "calibrate",
    "index",
    "search",
    "group",
    "serve",
    "reproduce",
)
_EXAMPLE = "for example --config=configs/synthetic.py --workdir=workdirs/synthetic"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, perhaps with a variant, configs/NAME.py:VARIANT; its fields: --config.FIELD=VALUE.",
    lock_config=True, sys_argv=CONFIG_WORDS,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, results.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
_TABLE = flags.DEFINE_string("table", None, "Tables of the paper, with --mode=reproduce: 1 to 5, topk, or all.")
_SEEDS = flags.DEFINE_string(
    "seeds", "3", "Runs of each row, with --mode=reproduce: a number of runs, or a list of seeds."
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "Folder or manifest to index; with --mode=calibrate, manifest to learn from: path,identity[,camera].",
)
_INDEX = flags.DEFINE_string("index", None, "Folder of an index of photographs.")
_QUERY = flags.DEFINE_string("query", None, "Image to search for, or a folder of images of one person.")
_WHERE = flags.DEFINE_string(
    "where", None, "Filter of a search, an SQL condition: \"path LIKE 'gate/%' AND time > 10\"."
)
_K = flags.DEFINE_integer("k", 20, "Number of matches of a search.")
_RERANK = flags.DEFINE_string("rerank", "none", "Re-ranking of a search: none or k_reciprocal.")
_CUT = flags.DEFINE_float(
    "cut", 0.6, "Distance at which --mode=group cuts groups, from 0 to 1; less gives more groups."
)
_APPROXIMATE = flags.DEFINE_bool("approximate", False, "Build, or search, an approximate index of the embeddings.")
_CHECK = flags.DEFINE_string(
    "check", None, "Manifest of other people to check a calibration on, with --mode=calibrate."
)
_REASONS = flags.DEFINE_integer("reasons", 8, "Best matches for which the page of a search shows why.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address that --mode=serve listens on; by default for this machine alone."
)
_PORT = flags.DEFINE_integer("port", 8000, "Port that --mode=serve listens on; 0 for a free one.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for what compare, search and group write.")
_PRIOR = flags.DEFINE_float(
    "prior", None, "Share of matching pairs that probabilities assume; 0.5 if not calibrated so."
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes that are started with the same command.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster provides it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, where no cluster provides it.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0, where no cluster provides it.")
_TIMEOUT = flags.DEFINE_integer("distributed_timeout", 300, "Seconds to wait for the other processes.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(command: CommandLine) -> None:
    """Check the flags and run the selected mode."""
    mode = _MODE.value
    if command.words and mode != "compare":
        raise UserError(
            f"argument {command.words[0]!r}: no flag, expected --config=..., --workdir=...; write it as one"
        )
    if mode not in MODES:
        raise UserError(f"--mode: found {mode!r}, expected one of {', '.join(MODES)}; choose one of them")
    if command.config is None and mode == "import":
        raise UserError("config.pretrained: not given, expected the checkpoint to import; name it, or a config with it")
    if command.config is None and mode not in (*READ_WORKDIR, *READ_NETWORK):
        raise UserError(f"--config: not given, expected --config=...; {_EXAMPLE}")
    if not _WORKDIR.value:
        raise UserError(f"--workdir: not given, expected --workdir=...; {_EXAMPLE}")
    _check_reproduce(command)
    cluster = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _TIMEOUT.value)
    check_distributed(_DISTRIBUTED.value, *cluster)
    # Check the flags before importing jax, to report typos quickly. Processes join before the remaining imports.
    if _DISTRIBUTED.value:
        from cacenet_jax.distributed import processes

        processes.start(*cluster)
    from cacenet_jax import train
    from cacenet_jax.distributed import progress
    from cacenet_jax.distributed.device_map import available_devices
    from cacenet_jax.run import compilation
    from cacenet_jax.run.validation import validate

    if command.config is not None:
        validate(command.config, command.source)
    compilation.enable_cache()
    if os.environ.get("JAX_PLATFORMS"):  # otherwise there is always a CPU
        available_devices()
    modes: dict[str, Callable[[Any, str], Any]] = {
        "train": train.train, "evaluate": train.evaluate, "visualize": _visualize, "export": _export,
        "reproduce": functools.partial(_reproduce, command),
        "import": _import, "compare": functools.partial(_compare, command.words), "calibrate": _calibrate,
        "index": _index, "search": _search, "group": _group, "serve": _serve,
    }  # fmt: skip
    workdir = os.path.expanduser(_WORKDIR.value)
    with progress.shown(), writing(workdir):
        modes[mode](command.config, workdir)


def _import(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.run.import_checkpoint import import_checkpoint

    import_checkpoint(config, workdir)


def _visualize(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.visualize import report  # imported lazily: slow, and not needed for training

    report.visualize(config, workdir)


def _export(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.export import run  # imported lazily: training does not need the export libraries

    run.export(config, workdir)


def _compare(images: list[str], config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.decide import compare

    compare.compare(config, workdir, images, _OUTPUT.value, _PRIOR.value)


def _calibrate(config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.decide import calibrate

    calibrate.calibrate(config, workdir, _IMAGES.value, _CHECK.value, _PRIOR.value)


def _index(config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.find import index

    index.update(config, workdir, _IMAGES.value, _INDEX.value, _APPROXIMATE.value)


def _search(config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.find import search

    query = (_INDEX.value, _QUERY.value, _K.value, _WHERE.value, _RERANK.value, not _APPROXIMATE.value)
    search.search(config, workdir, *query, _OUTPUT.value, _REASONS.value, _PRIOR.value)


def _group(config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.find import group

    group.group(config, workdir, _INDEX.value, _WHERE.value, _CUT.value, _OUTPUT.value)


def _serve(config: ConfigDict | None, workdir: str) -> None:
    from cacenet_jax.serve import run

    run.serve(config, workdir, _INDEX.value, _HOST.value, _PORT.value)


def _check_reproduce(command: CommandLine) -> None:
    """Raise UserError if the flags that are specific to --mode=reproduce are invalid or used in another mode."""
    if _MODE.value == "reproduce":
        parse_tables(_TABLE.value), parse_seeds(_SEEDS.value)
        check_rows_are_free(command.file, command.argument, command.overrides)
    elif given := [f"--{flag.name}" for flag in (_TABLE, _SEEDS) if flag.present]:
        raise UserError(
            f"{given[0]}: given with --mode={_MODE.value}, expected --mode=reproduce; add it or leave it out"
        )


def _reproduce(command: CommandLine, config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.reproduce import loop

    tables, seeds = parse_tables(_TABLE.value), parse_seeds(_SEEDS.value)
    loop.reproduce(config, workdir, tables, seeds, command.file, command.overrides)


def _joined() -> bool:
    """Return True if this process has joined others, which may be waiting for it."""
    return flags.FLAGS.is_parsed() and _DISTRIBUTED.value and "cacenet_jax.distributed.processes" in sys.modules


def _end_stopped(error: stopping.StoppedError) -> None:
    """End after a stop request, in every process at once."""
    if not _joined():
        print_line(error)
        os._exit(error.exit_code)  # a signal that comes now would interrupt the interpreter's exit
    from cacenet_jax.distributed import processes

    if processes.is_writer():
        print_line(error)
    processes.end_together(error.exit_code)


def main() -> None:
    """Parse the command line, run the mode and report user errors without a traceback.

    The exit code is 2 for a mistake that the user can correct, 1 for any other error, and 128 + N after signal N.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(levelname)s: %(message)s"))
    app.define_help_flags()
    show_help_of(__name__, __doc__)
    stopping.listen()
    try:
        run(parse(sys.argv))
    except stopping.StoppedError as error:
        _end_stopped(error)
    except UserError as error:
        code = getattr(error, "exit_code", 2)
        if "--debug" in sys.argv:
            traceback.print_exc()
        if not _joined():
            print_line(f"error: {error}")
            sys.exit(code)
        from cacenet_jax.distributed import processes

        if not processes.reported_by_writer(code, str(error)):
            print_line(f"error: {error}")
        processes.shut_down(code, str(error))
    except Exception as error:
        if not _joined():
            raise
        from cacenet_jax.distributed import processes

        processes.shut_down_on_error(error, debug="--debug" in sys.argv)


if __name__ == "__main__":
    main()
