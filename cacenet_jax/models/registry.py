"""Registry of named values for a config field, which also accepts values of other modules as MODULE:NAME."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from cacenet_jax.errors import UserError

T = TypeVar("T")


def import_named(
    name: str, *, field: str, known: Iterable[str], kind: str, accepts: Callable[[Any], bool], expected: str
) -> Any:
    """Import the value specified as MODULE:NAME.

    Args:
        name: import specification, MODULE:NAME.
        field: config field that holds the name, for error messages.
        known: registered names, for error messages.
        kind: "class" or "function", for error messages.
        accepts: predicate that returns True for a valid value.
        expected: description of a valid value, for error messages.

    Raises:
        UserError: the name cannot be imported, or the value is not valid.
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
    """A mapping from names to values, which also imports MODULE:NAME.

    Attributes:
        field: config field that holds the name, for error messages.
        kind: "class" or "function", for error messages.
    """

    def __init__(self, field: str, kind: str, accepts: Callable[[Any], bool], expected: str):
        """Create an empty registry.

        Args:
            field: config field that holds the name.
            kind: "class" or "function".
            accepts: predicate that returns True for a valid value.
            expected: description of a valid value, for error messages.
        """
        self.field, self.kind = field, kind
        self._accepts, self._expected = accepts, expected
        self._values: dict[str, T] = {}
        self._imported: dict[str, T] = {}  # keyed by MODULE:NAME; not included in iteration

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names."""
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        """Return True if a name is registered."""
        return name in self._values

    def register(self, name: str, value: T) -> T:
        """Register a value, replacing any earlier one of the same name.

        Raises:
            UserError: the value is not valid.
        """
        if not self._accepts(value):
            raise UserError(f"{self.field}={name}: found {value!r}, expected {self._expected}; register one")
        self._values[name] = value
        return value

    def resolve(self, name: str) -> T:
        """Return the value of a registered name, or import MODULE:NAME.

        Raises:
            UserError: the name is unknown or cannot be imported, or the value is not valid.
        """
        if name in self._values:
            return self._values[name]
        if name not in self._imported:
            self._imported[name] = import_named(
                name, field=self.field, known=self, kind=self.kind, accepts=self._accepts, expected=self._expected
            )
        return self._imported[name]
