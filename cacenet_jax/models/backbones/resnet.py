"""ResNet feature maps (He et al. 2016, https://arxiv.org/abs/1512.03385), layer for layer as in torchvision.

Axes: B images, H x W pixels or positions, C channels in, D channels out; images are NHWC.

The following match torchvision's v1.5 models, so that their weights can be loaded: padding (written as numbers), the
stride of a bottleneck (in its 3x3 convolution), batch norm constants, initialisation, and layer names (`torch_name`).
There are two differences: no classifier, and stride 1 in the last stage by default, as is usual in re-identification
(Sun et al. 2018, https://arxiv.org/abs/1711.09349). A 384 x 128 image yields a 24 x 8 map.

Running statistics: flax keeps the biased batch variance, torch the unbiased one, which is n / (n - 1) times as large
for n = B * H * W values per channel (1.0003 at B = 16 in the last stage). Momentum 0.9 in flax is 0.1 in torch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones.convolutions import Conv1x1, StemConv, kaiming_fan_out, max_pool
from cacenet_jax.models.backbones.non_local import NonLocal

Block = Literal["basic", "bottleneck"]
EXPANSION = {"basic": 1, "bottleneck": 4}


class Stages(NamedTuple):
    """Fields of `ResNet` that define a member of the family."""

    stages: tuple[int, int, int, int]
    block: Block
    width: int
    ibn: bool = False


STAGES: dict[str, Stages] = {
    "resnet_tiny": Stages((1, 1, 1, 1), "basic", 8),  # for tests
    "resnet_small": Stages((1, 1, 1, 1), "basic", 32),  # for training on 128 x 64 images from scratch on a CPU
    "resnet18": Stages((2, 2, 2, 2), "basic", 64),
    "resnet34": Stages((3, 4, 6, 3), "basic", 64),
    "resnet50": Stages((3, 4, 6, 3), "bottleneck", 64),
    "resnet101": Stages((3, 4, 23, 3), "bottleneck", 64),
}
STAGES |= {
    f"{name}_ibn_a": STAGES[name]._replace(ibn=True) for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}


class InstanceBatchNorm(nn.Module):
    """IBN-a (Pan et al. 2018, https://arxiv.org/abs/1807.09441): instance norm on the first half of the channels.

    The other half uses batch norm. The layers are named `IN` and `BN`, as in the authors' weights.

    Attributes:
        norm: constructor of a batch norm, called with a name.
        dtype: compute dtype; instance statistics are in at least float32.
    """

    norm: Callable[..., Callable]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalise the two halves of the channels."""
        half = x_BHWC.shape[-1] // 2
        instance = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="IN")
        return jnp.concatenate([instance(x_BHWC[..., :half]), self.norm(name="BN")(x_BHWC[..., half:])], axis=-1)


class ResidualBlock(nn.Module):
    """A residual block, y = ReLU(x' + g(x)), where x' is x or, if the shape changes, a 1x1 projection of x.

    Attributes:
        kind: "basic" or "bottleneck".
        width: number of inner channels; the output has `EXPANSION[kind]` times as many.
        stride: stride of the first 3x3 convolution (v1.5) and of the projection.
        project: apply the projection `downsample` to the skip connection.
        conv1x1: constructor of a 1x1 convolution, called with (features, stride, name).
        conv3x3: constructor of a 3x3 convolution with padding 1, called with (features, stride, name).
        norm: constructor of a batch norm, called with a name.
        first_norm: constructor of the norm after the first convolution; None to use `norm`.
        zero_init: initialise the scale of the last batch norm to zero.
        non_local: constructor of a module applied to the output of the block, called with a name; None to omit it.
    """

    kind: Block
    width: int
    stride: int
    project: bool
    conv1x1: Callable[..., Callable]
    conv3x3: Callable[..., Callable]
    norm: Callable[..., Callable]
    first_norm: Callable[..., Callable] | None = None
    zero_init: bool = False
    non_local: Callable[..., Callable] | None = None

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Apply the block."""
        features = self.width * EXPANSION[self.kind]
        first_norm = self.first_norm or self.norm
        last_norm = partial(self.norm, scale_init=nn.initializers.zeros) if self.zero_init else self.norm
        if self.kind == "basic":
            y_BHWC = self.conv3x3(self.width, self.stride, name="conv1")(x_BHWC)
            y_BHWC = nn.relu(first_norm(name="bn1")(y_BHWC))
            y_BHWC = self.conv3x3(self.width, 1, name="conv2")(y_BHWC)
            y_BHWD = last_norm(name="bn2")(y_BHWC)
        else:
            y_BHWC = self.conv1x1(self.width, 1, name="conv1")(x_BHWC)
            y_BHWC = nn.relu(first_norm(name="bn1")(y_BHWC))
            y_BHWC = self.conv3x3(self.width, self.stride, name="conv2")(y_BHWC)
            y_BHWC = nn.relu(self.norm(name="bn2")(y_BHWC))
            y_BHWD = last_norm(name="bn3")(self.conv1x1(features, 1, name="conv3")(y_BHWC))
        if self.project:
            x_BHWC = self.conv1x1(features, self.stride, name="downsample_conv")(x_BHWC)
            x_BHWC = self.norm(name="downsample_bn")(x_BHWC)
        x_BHWC = nn.relu(x_BHWC + y_BHWD)
        return x_BHWC if self.non_local is None else self.non_local(name="non_local_block")(x_BHWC)


class ResNet(nn.Module):
    """A residual network up to its last feature map.

    Attributes:
        stages: number of blocks in layer1 to layer4.
        block: "basic" (3x3, 3x3) or "bottleneck" (1x1, 3x3, 1x1 with four times the channels).
        width: number of channels of the stem and of layer1's inner layers, doubled in each later stage.
        last_stride: stride of layer4: 1 (re-identification) or 2 (ImageNet).
        dtype: compute dtype. Parameters and running statistics stay float32.
        axis_name: mapped axis over which batch norm averages its statistics; if None, each device uses its own batch.
        matmul_1x1: compute 1x1 convolutions as matrix products, which is faster on a CPU; see `Conv1x1`.
        cpu_stem: use implementations of the stem and the pooling that are faster on a CPU; see `StemConv` and
            `max_pool`.
        zero_init_residual: zero-initialise the last batch norm scale of each block (off by default, as in torchvision).
        ibn: use instance norm on half of the channels after the first convolution of each block, except in the last
            stage.
        non_local: add a non-local block after the second-to-last block of layer2, layer3 and layer4.
    """

    stages: Sequence[int]
    block: Block
    width: int
    last_stride: int = 1
    dtype: Any = jnp.float32
    axis_name: str | None = None
    matmul_1x1: bool = False
    cpu_stem: bool = False
    zero_init_residual: bool = False
    ibn: bool = False
    non_local: bool = False

    # ImageNet statistics for pixels scaled to [0, 1], as used by the published weights.
    pixel_mean = (0.485, 0.456, 0.406)
    pixel_std = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        """Number of feature-map channels, D."""
        return self.width * 2 ** (len(self.stages) - 1) * EXPANSION[self.block]

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each stage."""
        return (1, *(2,) * (len(self.stages) - 2), self.last_stride)

    def _non_local(self, stage: int) -> tuple[int, ...]:
        """Return the indices of the blocks in a stage that are followed by a non-local block."""
        return (self.stages[stage] - 2,) if self.non_local and stage > 0 else ()

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute the feature map.

        Args:
            x_BHWC: normalised images.
            train: use batch statistics and update the running ones (collection `batch_stats`).

        Returns:
            The output of layer4 after its ReLU, shape (B, h, w, channels), of type `dtype`.
        """
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kaiming_fan_out)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        norm = partial(norm, dtype=self.dtype, axis_name=self.axis_name)
        mixed_norm = partial(InstanceBatchNorm, norm, self.dtype)

        def conv3x3(features: int, stride: int, name: str) -> nn.Module:
            return conv(features, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)), name=name)

        def conv1x1(features: int, stride: int, name: str) -> nn.Module:
            return Conv1x1(features, stride, self.matmul_1x1, self.dtype, name=name)

        x_BHWC = StemConv(self.width, pad_channels=self.cpu_stem, dtype=self.dtype, name="conv1")(x_BHWC)
        x_BHWC = nn.relu(norm(name="bn1")(x_BHWC))
        x_BHWC = max_pool(x_BHWC, by_slices=self.cpu_stem)
        for stage, (blocks, first_stride) in enumerate(zip(self.stages, self.strides, strict=True)):
            width = self.width * 2**stage
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                features = width * EXPANSION[self.block]
                x_BHWC = ResidualBlock(
                    kind=self.block,
                    width=width,
                    stride=stride,
                    project=stride != 1 or x_BHWC.shape[-1] != features,
                    conv1x1=conv1x1,
                    conv3x3=conv3x3,
                    norm=norm,
                    first_norm=mixed_norm if self.ibn and stage < len(self.stages) - 1 else None,
                    zero_init=self.zero_init_residual,
                    non_local=partial(NonLocal, self.dtype) if index in self._non_local(stage) else None,
                    name=f"layer{stage + 1}_{index}",
                )(x_BHWC)
        return x_BHWC

    @staticmethod
    def torch_name(path: str | Sequence[str]) -> str:
        """Return the name in torchvision's state dict; see the function `torch_name`."""
        return torch_name(path)


def build(name: str, **fields: Any) -> ResNet:
    """Build a member of the family, using the implementations that are fast on the current backend.

    Args:
        name: a key of `STAGES`.
        **fields: fields of `ResNet`. `matmul_1x1` and `cpu_stem` default to True on the CPU backend and False on
            others. They affect the speed, but not the parameters or, apart from rounding, the result.

    Returns:
        The module.

    Raises:
        UserError: unknown name or field, or non-local blocks in a network whose stages have only one block.
    """
    if name not in STAGES:
        raise UserError(f"backbone {name!r} is not known; choose one of {', '.join(STAGES)}")
    known = {field.name for field in dataclasses.fields(ResNet)} - {"parent"}
    if unknown := sorted(set(fields) - known):
        expected = ", ".join(sorted(known))
        raise UserError(f"backbone {name!r} has no field {', '.join(unknown)}; fields are {expected}")
    if fields.get("non_local") and min(STAGES[name].stages[1:]) < 2:
        raise UserError(
            f"config.model.backbone_fields.non_local: found True with backbone {name!r}, expected stages of two blocks or "
            "more; set it to False or choose resnet18 or larger"
        )
    on_cpu = jax.default_backend() == "cpu"
    return ResNet(**(STAGES[name]._asdict() | {"matmul_1x1": on_cpu, "cpu_stem": on_cpu} | fields))


def resnet50(**fields: Any) -> ResNet:
    """Build the paper's backbone, which maps (B, 384, 128, 3) images to (B, 24, 8, 2048) maps."""
    return build("resnet50", **fields)


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_TORCH |= {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1", "non_local_block": "non_local_block"}


def torch_name(path: str | Sequence[str]) -> str:
    """Return the name of a parameter or running statistic in torchvision's state dict.

    The mapping is one to one: `layer1_0` becomes `layer1.0`, `downsample_conv` and `downsample_bn` become
    `downsample.0` and `downsample.1`, `kernel` and `scale` become `weight`, and `mean` and `var` become `running_mean`
    and `running_var`. Kernels are HWIO in flax and OIHW in torch; `num_batches_tracked` has no counterpart.

    Args:
        path: keys from the root of `params` or `batch_stats`, as a sequence or joined by "/", optionally preceded by
            the name of the collection, for example "layer1_0/downsample_conv/kernel".

    Returns:
        The name, in this example "layer1.0.downsample.0.weight".

    Raises:
        ValueError: the path does not belong to this network.
    """
    keys = path.split("/") if isinstance(path, str) else list(path)
    keys = keys[1:] if keys[:1] in (["params"], ["batch_stats"]) else keys
    stem = len(keys) == 2 and keys[0] in ("conv1", "bn1")
    inner = len(keys) == 4 and (keys[2] in ("IN", "BN") or keys[1] == "non_local_block")
    block = keys[0].startswith("layer") and (len(keys) == 3 or inner)
    if not (stem or block) or keys[-1] not in _TORCH:
        raise ValueError(f"{path!r} is not a path of a ResNet, such as 'layer1_0/conv1/kernel'")
    return ".".join(_TORCH.get(key, key.replace("_", ".")) for key in keys)
