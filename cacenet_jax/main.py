"""Person re-identification with CACE-Net: train, evaluate, show and export a network.

Usage: cacenet --config=configs/NAME.py[:VARIANT] --workdir=DIR [--mode=MODE] [--config.FIELD=VALUE ...]
(or python -m cacenet_jax.main with the same flags)

Modes:
  train      trains, then evaluates; the same command continues a run that was stopped (the default)
  import     makes a workdir of a checkpoint of the authors' release, --config.pretrained
  evaluate   scores a trained network on its test split, or on --config.eval.data
  visualize  draws maps, correspondences and ranked lists of a trained network
  export     writes a trained network for use without this package
  reproduce  trains what tables of the paper need, --table, and writes them

train, import and reproduce need --config; the others read it from the config.json in --workdir. Any field of
cacenet_jax/config.py can be changed, for example --config.eval.top_k=50. A data set, a backbone and a pair stage have fields
of their own: --config.data.options.seed=3, --config.model.backbone_fields.width=32, --config.model.pair.clue_weight=0.
"""

import contextlib
import functools
import logging as standard_logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cacenet_jax.errors import UserError
from cacenet_jax.reproduce.tables import check_rows_are_free, parse_seeds, parse_tables
from cacenet_jax.run.command_line import (
    CONFIG_WORDS,
    READ_WORKDIR,
    CommandLine,
    check_distributed,
    parse,
    show_help_of,
)

MODES = ("train", "import", "evaluate", "visualize", "export", "reproduce")
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
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes that are started with the same command.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster provides it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, where no cluster provides it.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0, where no cluster provides it.")
_TIMEOUT = flags.DEFINE_integer("distributed_timeout", 300, "Seconds to wait for the other processes.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(command: CommandLine) -> None:
    """Dispatches to the mode."""
    if command.words:
        raise UserError(
            f"argument {command.words[0]!r}: no flag, expected --config=..., --workdir=...; write it as one"
        )
    mode = _MODE.value
    if mode not in MODES:
        raise UserError(f"--mode: found {mode!r}, expected one of {', '.join(MODES)}; choose one of them")
    if command.config is None and mode not in READ_WORKDIR:
        raise UserError(f"--config: not given, expected --config=...; {_EXAMPLE}")
    if not _WORKDIR.value:
        raise UserError(f"--workdir: not given, expected --workdir=...; {_EXAMPLE}")
    _check_reproduce(command)
    cluster = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _TIMEOUT.value)
    check_distributed(_DISTRIBUTED.value, *cluster)
    # After the flags: a typo should not wait for jax, nor what joins the processes for the rest.
    if _DISTRIBUTED.value:
        from cacenet_jax.distributed import processes

        processes.start(*cluster)
    from cacenet_jax import train
    from cacenet_jax.run import compilation
    from cacenet_jax.run.validation import validate

    validate(command.config, command.source)
    compilation.enable_cache()
    modes: dict[str, Callable[[ConfigDict, str], Any]] = {
        "train": train.train, "evaluate": train.evaluate, "visualize": _visualize, "export": _export,
        "reproduce": functools.partial(_reproduce, command),
        "import": _import,
    }  # fmt: skip
    modes[mode](command.config, os.path.expanduser(_WORKDIR.value))


def _import(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.run.import_checkpoint import import_checkpoint

    import_checkpoint(config, workdir)


def _visualize(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.visualize import report  # here: matplotlib takes a while, and training needs none

    report.visualize(config, workdir)


def _export(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.export import run  # here: training needs no libraries of an export

    run.export(config, workdir)


def _check_reproduce(command: CommandLine) -> None:
    """Raises UserError for a mistake in what belongs to --mode=reproduce alone."""
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
    """Return True in one of several processes, which may wait for this one."""
    return flags.FLAGS.is_parsed() and _DISTRIBUTED.value and "cacenet_jax.distributed.processes" in sys.modules


def _interrupted(code: int, word: str) -> None:
    """Ends at once with one line, which the other processes of the run hear too."""
    line = f"{word}; the same command continues from the newest checkpoint"
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(line, file=sys.stderr, flush=True)
    if _joined():
        from cacenet_jax.distributed import processes

        processes.notify_failure(code, line)
    os._exit(code)  # a save that was cut off would complain at length; like after a kill, it is no checkpoint


def _end_on_sigterm() -> None:
    """Makes SIGTERM end the run at once, also as the first process of a container, where its default does nothing.

    A handler in Python waits until the main thread is out of a step or a compilation, minutes perhaps; so a thread reads
    the signal from a pipe.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] == signal.SIGTERM:
                with contextlib.suppress(OSError):
                    print(end="\n" if sys.stderr.isatty() else "", file=sys.stderr)  # below the bar
                _interrupted(128 + signal.SIGTERM, "terminated")

    def forget() -> None:  # a fork's signals are not ours
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    threading.Thread(target=listen, name="SIGTERM", daemon=True).start()


def main() -> None:
    """Parses, runs, and ends with one line; exit code 2 on a mistake that the user can correct, 1 where a retry may help."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(levelname)s: %(message)s"))
    # orbax advises to save less often where a disk is slow, which is no mistake of the user's.
    logging.get_absl_logger().addFilter(lambda record: "Waiting for previous save" not in record.getMessage())
    app.define_help_flags()
    show_help_of(__name__, __doc__)
    _end_on_sigterm()
    try:
        run(parse(sys.argv))
    except UserError as error:
        code = getattr(error, "exit_code", 2)
        if "--debug" in sys.argv:
            traceback.print_exc()
        if not _joined():
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(code)
        from cacenet_jax.distributed import processes

        if not processes.reported_by_writer(code, str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        processes.shut_down(code, str(error))
    except Exception as error:
        if not _joined():
            raise
        from cacenet_jax.distributed import processes

        processes.shut_down_on_error(error, debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        _interrupted(128 + signal.SIGINT, "interrupted")


if __name__ == "__main__":
    main()
