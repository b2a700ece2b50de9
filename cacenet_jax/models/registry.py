"""Named choices of a config field, which MODULE:NAME extends without touching this package."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from cacenet_jax.errors import UserError

T = TypeVar("T")


def import_named(
    name: str, *, field: str, known: Iterable[str], kind: str, accepts: Callable[[Any], bool], expected: str
) -> Any:
    """Import the value that MODULE:NAME names.

    Args:
        name: MODULE:NAME.
        field: config field that holds it, for errors.
        known: names that need no import, for errors.
        kind: noun for the value, "class" or "function".
        accepts: predicate for a valid value.
        expected: description of a valid value.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    start = f"{field}: found {name!r}, expected "
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"{start}one of {', '.join(known)}, or MODULE:{kind.upper()}; choose one of them")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{start}a {kind} that can be imported ({error}); correct the name or set PYTHONPATH"
        ) from error
    if not accepts(value):
        raise UserError(f"{start}{expected}, and {attribute} is none; correct the name")
    return value


class Registry(Generic[T]):
    """Values by name.

    Attributes:
        field: config field that holds the name, for errors.
        kind: noun for a value that can be imported, "class" or "function".
    """

    def __init__(self, field: str, kind: str, accepts: Callable[[Any], bool], expected: str):
        """Create an empty registry.

        Args:
            field: config field that holds the name.
            kind: noun for a value that can be imported.
            accepts: predicate for a valid value.
            expected: description of a valid value, for errors.
        """
        self.field, self.kind = field, kind
        self._accepts, self._expected = accepts, expected
        self._values: dict[str, T] = {}
        self._imported: dict[str, T] = {}  # by place; not listed among the names

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names."""
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        """Test for a registered name."""
        return name in self._values

    def register(self, name: str, value: T) -> T:
        """Add a value under a name, replacing an earlier one.

        Raises:
            UserError: the value is of another kind.
        """
        if not self._accepts(value):
            raise UserError(f"{self.field}={name}: found {value!r}, expected {self._expected}; register one")
        self._values[name] = value
        return value

    def resolve(self, name: str) -> T:
        """Return the value of a registered name or of MODULE:NAME, which is imported.

        Raises:
            UserError: there is none, or it is of another kind.
        """
        if name in self._values:
            return self._values[name]
        if name not in self._imported:
            self._imported[name] = import_named(
                name, field=self.field, known=self, kind=self.kind, accepts=self._accepts, expected=self._expected
            )
        return self._imported[name]
