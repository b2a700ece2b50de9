"""The command line of cacenet_jax.

python -m cacenet_jax.main --config=configs/<name>.py --workdir=DIR [--mode=...] [--config.field=value ...]
"""

import logging as standard_logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from cacenet_jax.command_line import check_distributed, parse
from cacenet_jax.errors import UserError

MODES = ("train", "evaluate")
_EXAMPLE = "for example --config=configs/synthetic.py --workdir=workdirs/synthetic"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/; fields: --config.field=value.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, results.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
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
    how = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _TIMEOUT.value)
    check_distributed(_DISTRIBUTED.value, *how)
    # After the flags: a typo should not wait for jax, nor what joins the processes for the rest.
    if _DISTRIBUTED.value:
        from cacenet_jax import processes

        processes.start(*how)
    from cacenet_jax import compilation, train

    compilation.use_cache()
    modes: dict[str, Callable] = {"train": train.train, "evaluate": train.evaluate}
    modes[_MODE.value](_CONFIG.value, _WORKDIR.value)


def _joined() -> bool:
    """Whether this is one of several processes, which may wait for it."""
    return flags.FLAGS.is_parsed() and _DISTRIBUTED.value and "cacenet_jax.processes" in sys.modules


def main() -> None:
    """Parses, runs, and ends with one line and exit code 2 on a mistake that the user can mend."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(levelname)s: %(message)s"))
    app.define_help_flags()
    try:
        run(parse(sys.argv))
    except UserError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        if _joined():
            from cacenet_jax import processes

            processes.leave(2, str(error))
        sys.exit(2)
    except Exception as error:
        if not _joined():
            raise
        from cacenet_jax import processes

        processes.crash(error, debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the newest checkpoint", file=sys.stderr, flush=True)
        os._exit(130)  # a save that was cut off would complain at length; like after a kill, it is no checkpoint


if __name__ == "__main__":
    main()
