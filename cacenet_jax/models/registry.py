"""Named choices of a config field, which MODULE:NAME extends without touching this package."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from cacenet_jax.errors import UserError

T = TypeVar("T")


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
        start = f"{self.field}: found {name!r}, expected "
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute):
            raise UserError(f"{start}one of {', '.join(self)}, or MODULE:{self.kind.upper()}; choose one of them")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{start}a {self.kind} that can be imported ({error}); correct the name or set PYTHONPATH"
            ) from error
        if not self._accepts(value):
            raise UserError(f"{start}{self._expected}, and {attribute} is none; correct the name")
        return self.register(name, value)
