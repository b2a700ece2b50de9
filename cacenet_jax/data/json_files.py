"""Reading of JSON files, which may be damaged: one error for whatever is wrong with a file."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cacenet_jax.errors import UserError

_MAX_DEPTH, _MAX_DIGITS = 50, 40


def parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is no JSON, no UTF-8, nested too deeply, or has an integer of too many digits.
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [value], 0
    while level:  # without recursion, which callers may use on what is returned
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        level, depth = [part for outer in level for part in _parts(outer)], depth + 1
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read a JSON object from a file, or return None if the file does not exist.

    Args:
        path: file.
        remedy: what the user can do about a damaged file, for the message.

    Raises:
        UserError: the file cannot be read, or contains no JSON object.
    """
    try:
        value = parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a JSON file; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: found no JSON ({error}), expected what was written there; {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found JSON without fields, expected what was written there; {remedy}")
    return value


def number(value: Any) -> float | None:
    """Return a value of a JSON file as a finite number, or None if it is none."""
    try:
        as_float = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None
