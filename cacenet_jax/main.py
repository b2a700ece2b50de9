"""The command line: python -m cacenet_jax.main --config=configs/<name>.py --workdir=DIR [--mode=...] [--config.x=...]."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from cacenet_jax.errors import UserError

MODES = ("train", "evaluate")

_CONFIG = config_flags.DEFINE_config_file("config", None, "File in configs/; fields: --config.field=value.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, results.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(argv: Sequence[str]) -> None:
    """Dispatches to the mode."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r}: found a word that is no flag, expected --config=..., --workdir=...")
    if _MODE.value not in MODES:
        raise UserError(f"--mode: found {_MODE.value!r}, expected one of {', '.join(MODES)}")
    for name, flag in (("--config", _CONFIG), ("--workdir", _WORKDIR)):
        if flag.value is None:
            raise UserError(f"{name}: not given, expected {name}=...; for example --config=configs/synthetic.py --workdir=workdirs/synthetic")
    from cacenet_jax import train  # after the flags: a typo should not wait for jax

    modes: dict[str, Callable] = {"train": train.train, "evaluate": train.evaluate}
    modes[_MODE.value](_CONFIG.value, _WORKDIR.value)


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags, with every mistake in them turned into a UserError."""
    try:
        return flags.FLAGS(argv)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"--config: {error}; expected a file, for example configs/synthetic.py") from error
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{message}; --help lists the flags, cacenet_jax/config.py the fields of a config") from error


def main() -> None:
    """Parses, runs, and ends with one line and exit code 2 on a mistake that the user can mend."""
    try:
        argv = _parse(sys.argv)
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        app.run(run, argv=sys.argv, flags_parser=lambda _: argv)
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
