"""Check of the flags of the modes on an index."""

from typing import Any

import jax

from cacenet_jax.errors import UserError


def need(mode: str, several: bool = False, **flags: Any) -> None:
    """Raise UserError if a flag that a mode needs is missing, or if there are several processes.

    Args:
        mode: value of --mode.
        several: True if several processes may share the work.
        flags: values of the flags by name.
    """
    missing = [f"--{name}" for name, value in flags.items() if not value]
    if missing:
        raise UserError(f"{', '.join(missing)}: not given, expected with --mode={mode}; add {' and '.join(missing)}")
    if jax.process_count() > 1 and not several:
        raise UserError(f"--mode={mode}: found {jax.process_count()} processes, expected one; leave out --distributed")
