"""Flags and the config file, every mistake in them told in one line. Imports no jax, so a typo is told at once."""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

from absl import flags

from cacenet_jax.errors import UserError
from cacenet_jax.run import config_files

_COORDINATOR = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")
_PROCESSES = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
_FIELDS = "cacenet_jax/config.py lists the fields"


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags of a command line and loads the config file that --config names.

    Returns:
        The words that are no flags, the program first.

    Raises:
        UserError: a flag, a field or a value that cannot be, or a config file that does not load.
    """
    argv = config_files.resolve_flag(argv)
    path = config_path(argv)
    if not path and (path == "" or any(word.startswith("--config.") for word in argv)):
        raise UserError(
            "--config: not given, expected --config=FILE before its fields; for example configs/synthetic.py"
        )
    if path and not os.path.isfile(path):
        raise UserError(
            f"--config: found no file {path!r}, expected a Python file or a config of the package: "
            f"{', '.join(config_files.names())}"
        )
    try:
        return flags.FLAGS(argv)
    except UserError:
        raise
    except Exception as error:  # a config file is a program: it can fail in any way
        raise UserError(_explain(error, argv, path)) from error


def config_path(argv: Sequence[str]) -> str | None:
    """The file that --config names, without the argument after a colon; None without the flag."""
    for position, word in enumerate(argv[1:], start=1):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "config":
            following = argv[position + 1] if position + 1 < len(argv) else ""
            return (value if equals else following).split(":")[0]
    return None


def show_help_of(module: str, text: str | None) -> None:
    """Make --help show a module's flags and docstring where a console command runs it, not `python -m`.

    absl shows those of the module `__main__`, which is then the command's own script of a few lines.
    """
    if module != "__main__":
        sys.modules["__main__"].__doc__ = text
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def check_distributed(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Raises UserError where the flags that start several processes are given in part or cannot be."""
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    found = " ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    if found and not distributed:
        raise UserError(f"{found}: found without --distributed, expected both; add --distributed")
    if timeout < 1:
        raise UserError(f"--distributed_timeout: found {timeout}, expected 1 second or more; raise it")
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise UserError(
            f"--distributed: found {found} without {' and '.join(missing)}, expected all three, {_PROCESSES}, or none "
            "where TPU, Slurm or Kubernetes tells them"
        )
    match = _COORDINATOR.fullmatch(coordinator or "")
    if not match or not 0 < int(match[2]) < 65536:
        raise UserError(
            f"--coordinator: found {coordinator!r}, expected HOST:PORT, for example 10.0.0.1:8476; name the machine of "
            "process 0 and a free port"
        )
    if not 0 <= (process_id or 0) < (num_processes or 0):
        raise UserError(
            f"--process_id: found {process_id} of --num_processes={num_processes}, expected 0 to one less than the "
            "number of processes; number them from 0"
        )


def _explain(error: Exception, argv: Sequence[str], path: str | None) -> str:
    for cause in _causes(error):
        if isinstance(cause, UserError):  # an argument after the colon that the config refuses
            return str(cause)
        lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if path and frame.filename == path]
        if isinstance(cause, SyntaxError):
            return f"{cause.filename}, line {cause.lineno}: {cause.msg}; correct the config file"
        if lines:
            return (
                f"{path}, line {lines[-1]}: {type(cause).__name__}: {_text(cause)}; correct the config file; {_FIELDS}"
            )
    if "get_config" in str(error):
        return f"{path}: found no function get_config, expected one that returns a config, as in configs/synthetic.py"
    if isinstance(error, KeyError | AttributeError):  # "'name'", then perhaps "Did you mean"
        text = _text(error)
        for typed in (word.split("=")[0] for word in argv[1:]):
            if text.strip("'\"").split(" ")[0].strip("'\"") in typed.split("."):
                hint = "".join(f"; {found}" for found in re.findall(r"Did you mean .*", text))
                return f"{typed}: found no such field in the config, expected one that exists{hint}; {_FIELDS}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{_text(error)}; --help lists the flags, {_FIELDS}"
    if isinstance(error, flags.IllegalFlagValueError):
        return f"{_text(error)}; give a value of the flag's type"
    return f"{_text(error)}; {_FIELDS}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error that started it all first."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error


def _text(error: BaseException) -> str:
    """The message of an error in one line, without the list of all fields that ml_collections puts into it."""
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    if text[:1] in "\"'" and text[:1] == text[-1:]:  # the message of a KeyError is the repr of its message
        text = text[1:-1].encode().decode("unicode_escape")
    text = re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", text, flags=re.DOTALL)
    return " ".join(text.split())
