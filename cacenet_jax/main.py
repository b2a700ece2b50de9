"""The command line of cacenet_jax.

python -m cacenet_jax.main --config=configs/<name>.py --workdir=DIR [--mode=...] [--config.field=value ...]

Once the package is installed, `cacenet` is the same command.
"""

import contextlib
import logging as standard_logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cacenet_jax.errors import UserError
from cacenet_jax.reproduce.tables import check_rows_are_free, parse_seeds, parse_tables
from cacenet_jax.run.command_line import check_distributed, parse, show_help_of

MODES = ("train", "import", "evaluate", "visualize", "export", "reproduce")
_EXAMPLE = "for example --config=configs/synthetic.py --workdir=workdirs/synthetic"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/; fields: --config.field=value.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, results.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
_TABLE = flags.DEFINE_string("table", None, "Tables of the paper, with --mode=reproduce: 1 to 5, topk, or all.")
_SEEDS = flags.DEFINE_string("seeds", "3", "Runs of each row, with --mode=reproduce: how many, or a list of seeds.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes that are started with the same command.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster tells it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes, where no cluster tells it.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0, where no cluster tells it.")
_TIMEOUT = flags.DEFINE_integer("distributed_timeout", 300, "Seconds to wait for the other processes.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(argv: Sequence[str]) -> None:
    """Dispatches to the mode."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r}: found a word that is no flag, expected --config=..., --workdir=...")
    if _MODE.value not in MODES:
        raise UserError(f"--mode: found {_MODE.value!r}, expected one of {', '.join(MODES)}; choose one of them")
    for name, flag in (("--config", _CONFIG), ("--workdir", _WORKDIR)):
        if not flag.value:
            raise UserError(f"{name}: not given, expected {name}=...; {_EXAMPLE}")
    _check_reproduce()
    how = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _TIMEOUT.value)
    check_distributed(_DISTRIBUTED.value, *how)
    # After the flags: a typo should not wait for jax, nor what joins the processes for the rest.
    if _DISTRIBUTED.value:
        from cacenet_jax.distributed import processes

        processes.start(*how)
    from cacenet_jax import train
    from cacenet_jax.run import compilation

    compilation.enable_cache()
    modes: dict[str, Callable] = {
        "train": train.train, "evaluate": train.evaluate, "visualize": _visualize, "export": _export,
        "reproduce": _reproduce,
        "import": _import,
    }  # fmt: skip
    modes[_MODE.value](_CONFIG.value, _WORKDIR.value)


def _import(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.run.import_checkpoint import import_checkpoint

    import_checkpoint(config, workdir)


def _visualize(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.visualize import report  # here: matplotlib takes a while, and training needs none

    report.visualize(config, workdir)


def _export(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.export import run  # here: training needs no libraries of an export

    run.export(config, workdir)


def _check_reproduce() -> None:
    """Raises UserError for a mistake in what belongs to --mode=reproduce alone."""
    if _MODE.value == "reproduce":
        parse_tables(_TABLE.value), parse_seeds(_SEEDS.value)
        check_rows_are_free(flags.FLAGS["config"].config_filename, flags.FLAGS["config"].override_values)
    elif given := [f"--{flag.name}" for flag in (_TABLE, _SEEDS) if flag.present]:
        raise UserError(
            f"{given[0]}: found with --mode={_MODE.value}, expected --mode=reproduce; add it or leave it out"
        )


def _reproduce(config: ConfigDict, workdir: str) -> None:
    from cacenet_jax.reproduce import loop

    given = flags.FLAGS["config"]
    file, overrides = given.config_filename.split(":")[0], given.override_values
    loop.reproduce(config, workdir, parse_tables(_TABLE.value), parse_seeds(_SEEDS.value), file, overrides)


def _joined() -> bool:
    """Whether this is one of several processes, which may wait for it."""
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

    A handler in Python waits until the main thread is out of a step or a compilation, minutes perhaps; so a thread hears
    of the signal.
    """
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def listen() -> None:
        while number := os.read(hear, 1):
            if number[0] == signal.SIGTERM:
                with contextlib.suppress(OSError):
                    print(end="\n" if sys.stderr.isatty() else "", file=sys.stderr)  # below the bar
                _interrupted(128 + signal.SIGTERM, "terminated")

    def forget() -> None:  # a fork's signals are not ours
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    threading.Thread(target=listen, name="hear SIGTERM", daemon=True).start()


def main() -> None:
    """Parses, runs, and ends with one line; exit code 2 on a mistake that the user can mend, 1 where a retry may help."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(levelname)s: %(message)s"))
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
