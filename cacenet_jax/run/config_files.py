"""Find the configs that come with the package, in a checkout and where it is installed.

`--config=configs/synthetic.py`, `--config=synthetic.py` and `--config=synthetic` all name one of them where the working
folder has no such file; an argument after a colon is kept. Imports no jax.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Folder of the package's configs: `configs/` of a checkout, cacenet_jax/configs where it is installed."""
    checkout = _PACKAGE.parent
    return checkout / "configs" if (checkout / "pyproject.toml").is_file() else _PACKAGE / "configs"


def names() -> list[str]:
    """Names of the package's configs, without .py."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def resolve(text: str) -> str:
    """Find the file that --config names.

    Args:
        text: FILE or FILE:ARGUMENT.

    Returns:
        The same text, or with the path of a config of the package for FILE, where there is no such file and FILE is the name
        of one, with or without .py and a leading configs/.
    """
    file, colon, argument = text.partition(":")
    path = PurePath(file)
    if os.path.isfile(file) or path.parent not in (PurePath(), PurePath("configs")) or path.suffix not in ("", ".py"):
        return text
    return f"{folder() / path.stem}.py{colon}{argument}" if path.stem in names() else text


def resolve_flag(argv: Sequence[str]) -> list[str]:
    """Apply `resolve` to the value of --config in a command line."""
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
