"""Lookup of the configs that ship with the package, in a checkout or an installation.

`--config=configs/synthetic.py`, `--config=synthetic.py` and `--config=synthetic` all refer to the same packaged config,
unless the working directory contains a file of that name. An argument after a colon is kept. Does not import jax.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Return the folder of the package's configs: `configs` in a checkout, `cacenet_jax/configs` if installed."""
    checkout = _PACKAGE.parent
    return checkout / "configs" if (checkout / "pyproject.toml").is_file() else _PACKAGE / "configs"


def names() -> list[str]:
    """Return the names of the package's configs, without .py."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def resolve(text: str) -> str:
    """Resolve the name of a packaged config to its path.

    Args:
        text: FILE or FILE:ARGUMENT.

    Returns:
        `text`, with FILE replaced by the path of the packaged config of that name. The suffix .py and the prefix
        configs/ are optional. If FILE exists or there is no config of that name, only `~` in it is expanded.
    """
    file, colon, argument = text.partition(":")
    file = os.path.expanduser(file)
    text = file + colon + argument
    path = PurePath(file)
    if os.path.isfile(file) or path.parent not in (PurePath(), PurePath("configs")) or path.suffix not in ("", ".py"):
        return text
    return f"{folder() / path.stem}.py{colon}{argument}" if path.stem in names() else text


def resolve_flag(argv: Sequence[str]) -> list[str]:
    """Apply `resolve` to the value of --config on a command line."""
    words = list(argv)
    for i, word in enumerate(words[1:], start=1):
        name, equals, value = word.partition("=")
        if name not in ("--config", "-config"):
            continue
        if equals:
            words[i] = f"{name}={resolve(value)}"
        elif i + 1 < len(words):
            words[i + 1] = resolve(words[i + 1])
    return words
