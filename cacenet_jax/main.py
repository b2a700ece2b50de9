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

from cacenet_jax.command_line import parse
from cacenet_jax.errors import UserError

MODES = ("train", "evaluate")
_EXAMPLE = "for example --config=configs/synthetic.py --workdir=workdirs/synthetic"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/; fields: --config.field=value.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, results.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
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
    from cacenet_jax import train  # after the flags: a typo should not wait for jax

    modes: dict[str, Callable] = {"train": train.train, "evaluate": train.evaluate}
    modes[_MODE.value](_CONFIG.value, _WORKDIR.value)


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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the newest checkpoint", file=sys.stderr, flush=True)
        os._exit(130)  # a save that was cut off would complain at length; like after a kill, it is no checkpoint


if __name__ == "__main__":
    main()
