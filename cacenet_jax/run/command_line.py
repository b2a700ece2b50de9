"""Command-line flags and the config that they describe.

Each mistake is reported in one line. This module does not import jax, so typos are reported without delay.
"""

import ast
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from cacenet_jax.config import paper
from cacenet_jax.errors import UserError
from cacenet_jax.run import config_files
from cacenet_jax.run.choices import CHOICES, is_free, lookup, override
from cacenet_jax.run.completion import complete

READ_WORKDIR = ("evaluate", "visualize", "export")  # modes that can use the config of --workdir
# Modes that use it if there is one, and otherwise an export or a published checkpoint.
READ_NETWORK = ("compare", "calibrate", "index", "search", "group", "serve")
CONFIG_WORDS: list[str] = []  # arguments that the --config flag searches for overrides; set by `parse`
_RECORDED = str(Path(__file__).with_name("recorded.py"))
_PUBLISHED = str(Path(__file__).with_name("published.py"))
_COORDINATOR = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")
_PROCESSES = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
_FIELDS = "cacenet_jax/config.py lists the fields"


class CommandLine(NamedTuple):
    """Parsed command line.

    Attributes:
        words: positional arguments, without the program name.
        config: completed config, or None if there is neither --config nor a workdir to read it from.
        file: config file, without its argument.
        argument: argument of the config file, the part after the colon.
        overrides: values set on the command line, by dotted field.
    """

    words: list[str]
    config: ConfigDict | None
    file: str
    argument: str
    overrides: dict[str, Any]

    def source(self, field: str) -> str:
        """Return where a dotted field was set: the command line or the config file."""
        return "the command line" if field in self.overrides else self.file


def parse(argv: Sequence[str]) -> CommandLine:
    """Parse command-line flags and load the config that they describe.

    Choices (`cacenet_jax.run.choices`) and their additional fields are extracted before the other flags are parsed,
    because the config file need not define those fields.

    Args:
        argv: program name, followed by the flags.

    Raises:
        UserError: a flag, field or value is invalid, or the config file does not load.
    """
    path = None
    try:
        argv = flags.FLAGS.read_flags_from_files(list(argv))
        argv, free = _take_free(argv)
        argv = config_files.resolve_flag(_with_recorded(argv))
        path = _config_path(argv)
        if not path and (path == "" or free or any(word.startswith("--config.") for word in argv)):
            raise UserError(
                "--config: not given, expected --config=FILE before its fields; for example configs/synthetic.py"
            )
        if path and not os.path.isfile(path):
            raise UserError(
                f"--config: no file {path!r}, expected a Python file or a config of the package: "
                f"{', '.join(config_files.names())}"
            )
        CONFIG_WORDS[:] = argv
        words = flags.FLAGS(argv)[1:]
        loaded: Any = flags.FLAGS["config"]  # a flag type of ml_collections
        if loaded.value is None:
            return CommandLine(words, None, "", "", {})
        file, _, argument = loaded.config_filename.partition(":")
        overrides = loaded.override_values | free
        config = complete(override(loaded.value, free))
        names = {_RECORDED: f"{argument}/config.json", _PUBLISHED: argument}
        return CommandLine(words, config, names.get(file, file), argument, overrides)
    except UserError:
        raise
    except Exception as error:  # a config file is Python code and may raise anything
        raise UserError(_explain(error, argv, path)) from error


def _flag(argv: Sequence[str], name: str) -> str | None:
    """Return the value of a flag before the flags are parsed, or None if it is absent."""
    value = None
    for position, word in enumerate(argv[1:], start=1):
        flag, equals, text = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            following = argv[position + 1] if position + 1 < len(argv) else ""
            value = text if equals else following
    return value


def _config_path(argv: Sequence[str]) -> str | None:
    """Return the file given by --config without its argument, or None if the flag is absent."""
    value = _flag(argv, "config")
    return None if value is None else value.split(":")[0]


def _with_recorded(argv: list[str]) -> list[str]:
    """Add a --config flag if none is given and the mode can do without.

    That is the config recorded in the workdir or, with --mode=import, the one that describes config.pretrained.
    """
    mode, workdir, weights = (_flag(argv, name) for name in ("mode", "workdir", "config.pretrained"))
    if _flag(argv, "config") is not None:
        return argv
    is_run = mode in READ_NETWORK and os.path.isfile(os.path.join(os.path.expanduser(workdir or ""), "config.json"))
    if (mode in READ_WORKDIR and workdir) or is_run:
        return [argv[0], f"--config={_RECORDED}:{workdir}", *argv[1:]]
    if mode == "import" and weights:
        return [argv[0], f"--config={_PUBLISHED}:{weights}", *argv[1:]]
    return argv


def _take_free(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Split a command line into ordinary arguments and a dictionary of choices and their fields."""
    others, free, words = argv[:1], {}, iter(argv[1:])
    for word in words:
        flag, equals, text = word.lstrip("-").partition("=")
        field = flag.removeprefix("config.")
        if not word.startswith("-") or field == flag or not (field in CHOICES or is_free(field)):
            others.append(word)
            continue
        if not equals:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise UserError(f"--config.{field}: no value, expected --config.{field}=VALUE; give one")
        free[field] = text if field in CHOICES else _value(text)
    return others, free


def _value(text: str) -> Any:
    """Parse the value of a field of unknown type: a Python literal if possible, otherwise a string."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def show_help_of(module: str, text: str | None) -> None:
    """Make --help show a module's flags and docstring when it runs as a console command instead of `python -m`.

    By default absl shows those of `__main__`, which is the generated wrapper script in this case.
    """
    if module != "__main__":
        sys.modules["__main__"].__doc__ = text
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def check_distributed(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Raise UserError if the multi-process flags are incomplete or invalid."""
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    words = " ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    if words and not distributed:
        raise UserError(f"{words}: given without --distributed, expected both; add --distributed")
    if timeout < 1:
        raise UserError(f"--distributed_timeout: found {timeout}, expected 1 second or more; raise it")
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise UserError(
            f"--distributed: found {words} without {' and '.join(missing)}, expected all three, {_PROCESSES}, or none "
            "where TPU, Slurm or Kubernetes provides them"
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
        if isinstance(cause, UserError):  # the config rejected the argument after the colon
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
    if isinstance(error, KeyError | AttributeError):  # "'name'", possibly followed by "Did you mean"
        text = _text(error)
        for typed in (word.split("=")[0] for word in argv[1:] if "config." in word):
            if not _exists(typed.partition("config.")[2]):
                hint = "".join(f"; {suggestion}" for suggestion in re.findall(r"Did you mean .*", text))
                return f"{typed}: found no such field in the config, expected one that exists{hint}; {_FIELDS}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"{_text(error)}; --help lists the flags, {_FIELDS}"
    if isinstance(error, flags.IllegalFlagValueError):
        return f"{_text(error)}; give a value of the flag's type"
    return f"{_text(error)}; {_FIELDS}"


def _exists(field: str) -> bool:
    """Return True if the config has this dotted field."""
    try:
        lookup(paper(), field)
    except (KeyError, AttributeError, TypeError):
        return False
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, starting with the root cause."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error


def _text(error: BaseException) -> str:
    """Return the message of an error on one line, without the list of all fields that ml_collections adds."""
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    if text[:1] in "\"'" and text[:1] == text[-1:]:  # a KeyError may contain the repr of a message
        text = text[1:-1].encode().decode("unicode_escape")
    text = re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", text, flags=re.DOTALL)
    return " ".join(text.split())
