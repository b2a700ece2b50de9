"""Interface and registry of backbones, the networks that map images to feature maps (paper, section 3.2).

A custom backbone is a Linen module with the members of `Backbone`. A config selects it by import path,
config.model.backbone="my_package.my_module:MyBackbone", or by a name registered beforehand:

    backbones.register("mine", MyBackbone)
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import efficientnet_lite, mobilenet_v2, osnet, resnet
from cacenet_jax.models.registry import import_named


@runtime_checkable
class Backbone(Protocol):
    """A Linen module that maps normalised images to feature maps.

    It must have the fields `dtype` (compute dtype) and `axis_name` (device axis for batch norm statistics, or None),
    which are set by the package. Any other field can be set by `config.model.backbone_fields` or `build`. An optional
    property `unused_weights` lists prefixes of published weights to ignore, such as those of a classifier. An optional
    method `current_names` maps the names of arrays in a file, which may be those of an earlier implementation, to the
    names that `torch_name` uses.
    """

    @property
    def channels(self) -> int:
        """Number of feature-map channels, D."""

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean of red, green and blue, for pixels scaled to [0, 1]."""

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Standard deviation of red, green and blue, for pixels scaled to [0, 1]."""

    def torch_name(self, path: str | Sequence[str]) -> str:
        """Return the name of a parameter or running statistic in published weights (config.pretrained).

        `path` holds the keys in `params` or `batch_stats`. Raises ValueError for a path without a counterpart; a
        backbone without published weights may always raise.
        """

    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute feature maps.

        The maps should be non-negative if affinities are computed directly from them, because a ReLU sets negative
        affinities to zero.
        """


class Recipe(NamedTuple):
    """A registered backbone.

    Attributes:
        module: module class, which defines the available fields.
        make: function that builds the module from any subset of these fields.
    """

    module: type
    make: Callable[..., Any]


_MEMBERS = ("channels", "pixel_mean", "pixel_std", "torch_name")
_GIVEN = ("dtype", "axis_name")  # fields that every backbone must have
NAMES: dict[str, Recipe] = {}


def register(name: str, module: type, make: Callable[..., Any] | None = None) -> None:
    """Register a backbone, replacing any earlier one of the same name.

    Args:
        name: value of config.model.backbone.
        module: Linen module class with the members of `Backbone`.
        make: function that builds the module from any subset of its fields; None to call the class itself.

    Raises:
        UserError: the class lacks the field `dtype` or `axis_name`.
    """
    fields = _fields(module)
    if missing := [field for field in _GIVEN if field not in fields]:
        raise UserError(
            f"backbone {name!r}: found the fields {', '.join(fields)} of {module.__name__}, expected {', '.join(missing)} "
            "too; add them, see cacenet_jax.models.backbones.Backbone"
        )
    NAMES[name] = Recipe(module, make or module)


def build(name: str, **fields: Any) -> Any:
    """Build a backbone, using the implementations that are fast on the current device.

    Args:
        name: a key of `NAMES`, or MODULE:CLASS.
        **fields: fields of the module.

    Returns:
        A module with the `Backbone` interface.

    Raises:
        UserError: unknown name or field, or the module lacks a member of `Backbone`.
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
    """Check the name of a backbone and the names of its fields, importing MODULE:CLASS if necessary.

    Raises:
        UserError: unknown backbone or field.
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
    """Return the default values of a backbone's fields, omitting fields without one.

    Raises:
        UserError: unknown name.
    """
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
for _name in osnet.STAGES:
    register(_name, osnet.OSNet, partial(osnet.build, _name))
for _name in mobilenet_v2.STAGES:
    register(_name, mobilenet_v2.MobileNetV2, partial(mobilenet_v2.build, _name))
