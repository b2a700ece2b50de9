"""Published checkpoints of complete networks: recognition by content, and the names of their layers.

Two layouts are known: checkpoints of the authors' release (https://github.com/TencentYoutuResearch/PersonReID-YouReID)
and checkpoints of torchreid (https://github.com/KaiyangZhou/deep-person-reid) whose network has an embedding layer,
such as its OSNets. Does not import jax, so that a command line can be completed from a file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from cacenet_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]

_HEAD = "individual_head"
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_WIDTHS = {
    64: "osnet_x1_0",
    48: "osnet_x0_75",
    32: "osnet_x0_5",
    16: "osnet_x0_25",
}  # channels of the first convolution
# Number of blocks of each stage -> name of the ResNet, with basic and with bottleneck blocks.
_DEPTHS: dict[tuple[int, ...], tuple[str | None, str | None]] = {
    (2, 2, 2, 2): ("resnet18", None),
    (3, 4, 6, 3): ("resnet34", "resnet50"),
    (3, 4, 23, 3): (None, "resnet101"),
}


def _head(linear: str, norm: str, classifier: str) -> dict[tuple[str, ...], str]:
    """Return path -> name for the layers of an individual head, given the names of its modules."""
    paths: dict[tuple[str, ...], str] = {(_HEAD, "bn", ours): f"{norm}.{theirs}" for ours, theirs in _NORM.items()}
    for ours, theirs in (("conv", linear), ("classifier", classifier)):
        paths |= {(_HEAD, ours, "kernel"): f"{theirs}.weight", (_HEAD, ours, "bias"): f"{theirs}.bias"}
    return paths


class Layout(NamedTuple):
    """Naming scheme of a kind of checkpoint.

    Attributes:
        title: name of the kind, for messages.
        config: packaged config of the recipe, FILE:VARIANT.
        marks: names of two-dimensional or larger arrays that only this kind has, the classifier first.
        prefix: prefix of the backbone's names.
        layers: names of all layers outside the backbone, by path.
        backbone: function that returns the config's name of the backbone, or None if it is not known.
        fields: further config fields that depend on the file, by dotted field, as functions of its arrays.
    """

    title: str
    config: str
    marks: tuple[str, ...]
    prefix: str
    layers: Mapping[tuple[str, ...], str]
    backbone: Callable[[Arrays], str | None]
    fields: Mapping[str, Callable[[Arrays], Any]]

    def torch_name(self, of_backbone: Callable[[Sequence[str]], str], path: Sequence[str]) -> str:
        """Return the name of a parameter or running statistic in the checkpoint.

        Args:
            of_backbone: `torch_name` of the backbone.
            path: keys from the root of `params` or `batch_stats`, such as ("individual_head", "conv", "kernel").

        Raises:
            UserError: checkpoints of this kind have no such layer.
        """
        if path[0] == "backbone":
            return self.prefix + of_backbone(path[1:])
        if tuple(path) not in self.layers:
            raise UserError(
                f"--mode=import: found a network with {'/'.join(path)}, which {self.title} lacks, expected "
                f"--config={self.config}; take it, or leave --config out"
            )
        return self.layers[tuple(path)]

    def identities(self, arrays: Arrays) -> int:
        """Return the number of training identities, from the shape of the classifier."""
        return len(arrays[self.marks[0]])


def _resnet(arrays: Arrays) -> str | None:
    """Return the name of a ResNet by its number of blocks, and by the instance norms of its IBN-a blocks."""
    blocks = [{m[1] for name in arrays if (m := re.match(rf"resnet\.layer{i}\.(\d+)\.", name))} for i in range(1, 5)]
    bottleneck = "resnet.layer1.0.conv3.weight" in arrays
    name = _DEPTHS.get(tuple(map(len, blocks)), (None, None))[bottleneck]
    return name and name + ("_ibn_a" if any(".IN." in other for other in arrays) else "")


def _osnet(arrays: Arrays) -> str | None:
    """Return the name of an OSNet by its width and its instance norms."""
    first = arrays.get("conv1.conv.weight")
    width = None if first is None else _WIDTHS.get(len(first))
    if width is None:
        return None
    if "conv2.0.conv2.0.layers.0.conv1.weight" in arrays:  # streams in a list: the searched placement of instance norms
        return width.replace("osnet_", "osnet_ain_")
    return width if "conv1.bn.running_mean" in arrays else width.replace("osnet_", "osnet_ibn_")


_RELEASED_LAYERS = _head("embedding_layer.0", "embedding_layer.1", "fc_layer.2")
_RELEASED_LAYERS[_HEAD, "pair_classifier", "kernel"] = "pair_fc_layer.2.weight"
_RELEASED_LAYERS["gemp", "p"] = "gemp.p"
_RELEASED_LAYERS |= {("pair_graph", x, "kernel"): f"pair_graph.{x}.weight" for x in "ygo"}

RELEASED = Layout(
    title="the authors' release",
    config="configs/market1501.py:released",
    marks=("fc_layer.2.weight", "embedding_layer.0.weight"),
    prefix="resnet.",
    layers=MappingProxyType(_RELEASED_LAYERS),
    backbone=_resnet,
    fields=MappingProxyType(
        {
            "model.backbone_fields.non_local": lambda arrays: any(".non_local_block." in name for name in arrays),
            "model.embed_dim": lambda arrays: len(arrays["embedding_layer.0.weight"]),
        }
    ),
)  # fmt: skip

TORCHREID = Layout(
    title="a checkpoint of torchreid",
    config="configs/osnet.py",
    marks=("classifier.weight", "fc.0.weight"),
    prefix="",
    layers=MappingProxyType(_head("fc.0", "fc.1", "classifier")),
    backbone=_osnet,
    fields=MappingProxyType({"model.embed_dim": lambda arrays: len(arrays["fc.0.weight"])}),
)

LAYOUTS = (RELEASED, TORCHREID)
_PREFIXES = ("module.", "_orig_mod.", "model.")


def recognise(arrays: Arrays, source: str) -> tuple[Layout, dict[str, np.ndarray]]:
    """Return the layout of a checkpoint, and its arrays without the prefixes of wrappers such as DataParallel.

    Args:
        arrays: arrays by name, from `reading.read`.
        source: name of the file, for error messages.

    Raises:
        UserError: the arrays are those of no known kind.
    """
    plain = dict(arrays)
    while prefix := next((p for p in _PREFIXES if plain and all(name.startswith(p) for name in plain)), ""):
        plain = {name.removeprefix(prefix): x for name, x in plain.items()}
    for layout in LAYOUTS:
        if all(name in plain and plain[name].ndim >= 2 for name in layout.marks):
            return layout, plain
    kinds = "; ".join(f"{layout.title} ({' and '.join(layout.marks)})" for layout in LAYOUTS)
    raise UserError(
        f"config.pretrained: found {source} without embedding layer and classifier of a known network, expected {kinds}; "
        "weights of a backbone alone are taken by --mode=train"
    )


def fields_of(layout: Layout, arrays: Arrays, source: str) -> dict[str, Any]:
    """Return the config fields that describe the network in a checkpoint, by dotted field.

    Args:
        layout: layout of the checkpoint.
        arrays: its arrays, from `recognise`.
        source: name of the file, for error messages.

    Raises:
        UserError: the backbone is not known.
    """
    backbone = layout.backbone(arrays)
    if backbone is None:
        raise UserError(
            f"config.pretrained: found {source}, {layout.title} with a backbone that is not known here, expected a ResNet "
            "or an OSNet; choose its config by --config and --config.model.backbone"
        )
    return {"model.backbone": backbone} | {field: value(arrays) for field, value in layout.fields.items()}
