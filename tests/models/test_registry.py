"""Named choices: what is registered, what is imported by MODULE:NAME, what is refused."""

import sys
import types

import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.models.registry import Registry


@pytest.fixture
def registry(monkeypatch):
    """Functions by name, and a module of a user's that has one."""
    monkeypatch.setitem(sys.modules, "of_a_user", types.SimpleNamespace(double=lambda x: 2 * x, number=3))
    made = Registry("config.choice", "function", callable, "a function of a number")
    made.register("same", lambda x: x)
    return made


def test_a_registered_value_is_known_by_its_name_and_can_be_replaced(registry):
    assert list(registry) == ["same"] and "same" in registry and "other" not in registry
    assert registry.resolve("same")(3) == 3
    added = registry.register("same", lambda x: -x)
    assert registry.resolve("same") is added and list(registry) == ["same"]


def test_a_value_is_imported_from_its_place(registry):
    assert registry.resolve("of_a_user:double")(3) == 6
    assert registry.resolve("of_a_user:double") is sys.modules["of_a_user"].double
    assert list(registry) == ["same"]  # a place is no name: lists of names stay the package's own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", r"^config.choice: found 'none', expected one of same, or MODULE:FUNCTION"),
        (":double", "expected one of same, or MODULE:FUNCTION"),
        ("of_a_user:", "expected one of same, or MODULE:FUNCTION"),
        ("not_there:double", r"expected a function that can be imported \(No module named 'not_there'\).*PYTHONPATH"),
        ("of_a_user:triple", "expected a function that can be imported .*triple"),
        ("of_a_user:number", "expected a function of a number, and number is none; correct the name"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(registry, name, message):
    with pytest.raises(UserError, match=message) as error:
        registry.resolve(name)
    assert "\n" not in str(error.value) and name not in registry


def test_a_value_of_another_kind_is_not_registered(registry):
    with pytest.raises(UserError, match=r"config\.choice=three: found 3, expected a function of a number"):
        registry.register("three", 3)
    assert "three" not in registry
