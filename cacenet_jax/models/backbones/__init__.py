"""Backbones, networks from images to feature maps (paper, section 3.2): their interface and their registry.

One of your own is a Linen module with the members of `Backbone`. A config names it by where it can be imported from,
config.model.backbone="my_package.my_module:MyBackbone", or by a name that a line of Python gives it first:

    backbones.register("mine", MyBackbone)
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import efficientnet_lite, resnet
from cacenet_jax.models.registry import import_named


@runtime_checkable
class Backbone(Protocol):
    """A Linen module from normalised images to maps.

    It needs the fields `dtype` (of computation) and `axis_name` (the device axis over which batch norm takes its
    statistics, or None), which every network sets; `config.model.backbone_fields` or `build` may set any other. A property
    `unused_weights` may list prefixes of published weights that it ignores, such as a classifier's.
    """

    @property
    def channels(self) -> int:
        """D, channels of the map."""

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean of red, green and blue, in units of 255."""

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Standard deviation of red, green and blue, in units of 255."""

    def torch_name(self, path: str | Sequence[str]) -> str:
        """Name of a parameter or running statistic in published weights (config.pretrained).

        `path` holds its keys in `params` or `batch_stats`. Raises ValueError for a path without counterpart; a backbone
        without published weights may always do so.
        """

    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute maps; raw affinities want values that are not negative, because a ReLU follows."""


class Recipe(NamedTuple):
    """A named backbone.

    Attributes:
        module: its class, whose fields a caller may set.
        make: function of some of these fields that builds it.
    """

    module: type
    make: Callable[..., Any]


_MEMBERS = ("channels", "pixel_mean", "pixel_std", "torch_name")
_GIVEN = ("dtype", "axis_name")  # fields that every network sets
NAMES: dict[str, Recipe] = {}


def register(name: str, module: type, make: Callable[..., Any] | None = None) -> None:
    """Add a backbone, or replace one.

    Args:
        name: value of config.model.backbone.
        module: its class, a Linen module with the members of `Backbone`.
        make: function of some of its fields that builds it; None for the class itself.

    Raises:
        UserError: the class lacks a field that every network sets.
    """
    fields = _fields(module)
    if missing := [field for field in _GIVEN if field not in fields]:
        raise UserError(
            f"backbone {name!r}: found the fields {', '.join(fields)} of {module.__name__}, expected {', '.join(missing)} "
            "too; add them, see cacenet_jax.models.backbones.Backbone"
        )
    NAMES[name] = Recipe(module, make or module)


def build(name: str, **fields: Any) -> Any:
    """Build a backbone, in the forms that are fast on the device in use.

    Args:
        name: a key of `NAMES`, or MODULE:CLASS.
        **fields: fields of its module.

    Returns:
        The module, a `Backbone`.

    Raises:
        UserError: there is no such name or field, or the module is no `Backbone`.
    """
    check(name, fields)
    backbone = NAMES[name].make(**fields)
    if not isinstance(backbone, Backbone):
        members = [member for member in _MEMBERS if not hasattr(backbone, member)]
        raise UserError(
            f"backbone {name!r}: found a {type(backbone).__name__} without {', '.join(members)}, expected the members of "
            "cacenet_jax.models.backbones.Backbone; add them"
        )
    return backbone


def check(name: str, fields: Iterable[str]) -> None:
    """Check the names of a backbone and of its fields; import MODULE:CLASS.

    Raises:
        UserError: there is no such backbone, or it lacks one of the fields.
    """
    if name not in NAMES:
        _import(name)
    known = _fields(NAMES[name].module)
    if unknown := sorted(set(fields) - set(known)):
        unknown_fields, expected = ", ".join(unknown), ", ".join(sorted(known))
        raise UserError(f"backbone {name!r} has no field {unknown_fields}; fields are {expected}; leave it out")


def _import(name: str) -> None:
    backbone = import_named(
        name,
        field="config.model.backbone",
        known=NAMES,
        kind="class",
        accepts=lambda value: isinstance(value, type) and issubclass(value, nn.Module),
        expected="a class that derives from flax.linen.Module",
    )
    register(name, backbone)


def defaults(name: str) -> dict[str, Any]:
    """Return the fields of a backbone's class that have defaults. Raises UserError for an unknown name."""
    check(name, ())
    module = NAMES[name].module
    given = {field.name: field.default for field in dataclasses.fields(module) if field.name in _fields(module)}
    return {field: default for field, default in given.items() if default is not dataclasses.MISSING}


def _fields(module: type) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]


for _name in resnet.STAGES:
    register(_name, resnet.ResNet, partial(resnet.build, _name))
for _name in efficientnet_lite.STAGES:
    register(_name, efficientnet_lite.EfficientNetLite, partial(efficientnet_lite.build, _name))
