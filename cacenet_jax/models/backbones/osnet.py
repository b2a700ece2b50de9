"""OSNet feature maps, layer for layer as in torchreid.

Axes: B images, H x W pixels or positions, C channels in, D channels out, S streams of a block; images are NHWC.

OSNet (Zhou et al. 2019, https://arxiv.org/abs/1905.00953) is made of blocks with four streams of one to four light 3x3
convolutions, which see regions of four sizes; one gate, shared by the streams, weighs their channels for each image.
OSNet-IBN and OSNet-AIN (Zhou et al. 2021, https://arxiv.org/abs/1910.06827) add instance norms for unseen cameras.

Names, padding, norm constants and initialisation match torchreid (https://github.com/KaiyangZhou/deep-person-reid), whose
model zoo has weights; the embedding layer `fc` and the classifier are not part of this network. A 256 x 128 image yields
a 16 x 8 map.

Running statistics: flax keeps the biased batch variance, torch the unbiased one. Momentum 0.9 here is 0.1 in torch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones.convolutions import Conv1x1, StemConv, kaiming_fan_out, max_pool
from cacenet_jax.models.backbones.depthwise import DepthwiseConv

BOTTLENECK = 4  # output channels of a block per channel of its streams
REDUCTION = 16  # channels of a stream per hidden channel of the gate

# Norms of a block: batch norm in the residual branch; also instance norm of the sum; or instance norm in the branch.
Norm = Literal["batch", "instance_sum", "instance_branch"]


class Layout(NamedTuple):
    """Names of the layers that torchreid's two implementations, `osnet` and `osnet_ain`, name differently.

    Attributes:
        streams: names of the light convolutions of each stream of a block.
        transitions: names of the 1x1 convolutions before the average poolings.
    """

    streams: tuple[tuple[str, ...], ...]
    transitions: tuple[str, str]


_OSNET = Layout(
    (
        ("conv2a",),
        ("conv2b_0", "conv2b_1"),
        ("conv2c_0", "conv2c_1", "conv2c_2"),
        ("conv2d_0", "conv2d_1", "conv2d_2", "conv2d_3"),
    ),
    ("conv2_2_0", "conv3_2_0"),
)
_AIN = Layout(
    tuple(tuple(f"conv2_{stream}_layers_{i}" for i in range(stream + 1)) for stream in range(4)),
    ("pool2_0", "pool3_0"),
)


class Stages(NamedTuple):
    """Fields of `OSNet` that define a member of the family."""

    widths: tuple[int, int, int, int]
    norms: tuple[tuple[Norm, ...], ...] = (("batch", "batch"),) * 3
    instance_stem: bool = False
    layout: Layout = _OSNET


STAGES: dict[str, Stages] = {
    "osnet_x0_25": Stages((16, 64, 96, 128)),
    "osnet_x0_5": Stages((32, 128, 192, 256)),
    "osnet_x0_75": Stages((48, 192, 288, 384)),
    "osnet_x1_0": Stages((64, 256, 384, 512)),
    "osnet_ibn_x1_0": Stages(
        (64, 256, 384, 512), (("instance_sum", "instance_sum"), *(("batch", "batch"),) * 2), instance_stem=True
    ),
    "osnet_ain_x1_0": Stages(
        (64, 256, 384, 512),
        (("instance_branch", "instance_branch"), ("batch", "instance_branch"), ("instance_branch", "batch")),
        instance_stem=True,
        layout=_AIN,
    ),
}


class ConvNorm(nn.Module):
    """A convolution `conv` and a norm `bn`.

    Attributes:
        conv: constructor of the convolution, called with a name.
        norm: constructor of the norm, called with a name; None to omit it.
    """

    conv: Callable[..., Callable]
    norm: Callable[..., Callable] | None

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Apply both; there is no activation."""
        x_BHWD = self.conv(name="conv")(x_BHWC)
        return x_BHWD if self.norm is None else self.norm(name="bn")(x_BHWD)


class LightConv(nn.Module):
    """A 1x1 convolution, a depthwise 3x3 convolution, batch norm and ReLU.

    Attributes:
        features: number of output channels.
        conv1x1: constructor of a 1x1 convolution, called with (features, name).
        depthwise: constructor of a depthwise 3x3 convolution, called with a name.
        norm: constructor of a batch norm, called with a name.
    """

    features: int
    conv1x1: Callable[..., Callable]
    depthwise: Callable[..., Callable]
    norm: Callable[..., Callable]

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Apply the layers."""
        x_BHWD = self.depthwise(name="conv2")(self.conv1x1(self.features, name="conv1")(x_BHWC))
        return nn.relu(self.norm(name="bn")(x_BHWD))


class Gate(nn.Module):
    """Weights of channels, sigmoid(fc2(ReLU(fc1(x)))), from the means of a stream over all positions.

    Attributes:
        dtype: compute dtype.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mean_SBC: Float[Array, "S B C"]) -> Float[Array, "S B C"]:
        """Compute the weights of each stream; the layers are shared."""
        channels = mean_SBC.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=kaiming_fan_out)
        hidden_SBE = nn.relu(dense(channels // REDUCTION, name="fc1")(mean_SBC))
        return nn.sigmoid(dense(channels, name="fc2")(hidden_SBE))


class OmniScaleBlock(nn.Module):
    """A residual block whose branch is a gated sum of streams of light convolutions.

    Attributes:
        features: number of output channels.
        kind: norms of the block.
        streams: names of the light convolutions of each stream.
        conv1x1: constructor of a 1x1 convolution, called with (features, name).
        depthwise: constructor of a depthwise 3x3 convolution, called with a name.
        norm: constructor of a batch norm, called with a name.
        instance_norm: constructor of an instance norm, called with a name.
        dtype: compute dtype of the gate.
    """

    features: int
    kind: Norm
    streams: Sequence[Sequence[str]]
    conv1x1: Callable[..., Callable]
    depthwise: Callable[..., Callable]
    norm: Callable[..., Callable]
    instance_norm: Callable[..., Callable]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Apply the block."""
        inner = self.features // BOTTLENECK
        wide = partial(self.conv1x1, self.features)
        y_BHWE = nn.relu(ConvNorm(partial(self.conv1x1, inner), self.norm, name="conv1")(x_BHWC))
        outputs = []
        for names in self.streams:
            z_BHWE = y_BHWE
            for name in names:
                z_BHWE = LightConv(inner, self.conv1x1, self.depthwise, self.norm, name=name)(z_BHWE)
            outputs.append(z_BHWE)
        gates_SBE = Gate(self.dtype, name="gate")(jnp.stack([z_BHWE.mean(axis=(1, 2)) for z_BHWE in outputs]))
        y_BHWE = sum(gate_BE[:, None, None] * z_BHWE for gate_BE, z_BHWE in zip(gates_SBE, outputs, strict=True))

        in_branch = self.kind == "instance_branch"
        y_BHWD = ConvNorm(wide, None if in_branch else self.norm, name="conv3")(y_BHWE)
        if in_branch:
            y_BHWD = self.instance_norm(name="IN")(y_BHWD)
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = ConvNorm(wide, self.norm, name="downsample")(x_BHWC)
        y_BHWD = y_BHWD + x_BHWC
        if self.kind == "instance_sum":
            y_BHWD = self.instance_norm(name="IN")(y_BHWD)
        return nn.relu(y_BHWD)


class OSNet(nn.Module):
    """An OSNet up to its last feature map.

    Attributes:
        widths: number of channels of the stem and of the three stages.
        norms: norms of each block of each stage.
        instance_stem: use instance norm in the stem.
        layout: names of layers in published weights.
        last_stride: stride of the second average pooling: 2 as published (16 pixels per position) or 1 (8 pixels, which
            omits the pooling and no parameter).
        dtype: compute dtype. Parameters and running statistics stay float32.
        axis_name: mapped axis over which batch norm averages its statistics; if None, each device uses its own batch.
        matmul_1x1: compute 1x1 convolutions as matrix products, which is faster on a CPU; see `Conv1x1`.
        cpu_depthwise: use an implementation of the depthwise convolutions that is faster on a CPU; see `DepthwiseConv`.
        cpu_stem: use implementations of the stem and the max pooling that are faster on a CPU; see `StemConv` and
            `max_pool`.
    """

    widths: Sequence[int]
    norms: Sequence[Sequence[Norm]]
    instance_stem: bool
    layout: Layout
    last_stride: int = 2
    dtype: Any = jnp.float32
    axis_name: str | None = None
    matmul_1x1: bool = False
    cpu_depthwise: bool = False
    cpu_stem: bool = False

    # ImageNet statistics for pixels scaled to [0, 1], as used by the published weights.
    pixel_mean = (0.485, 0.456, 0.406)
    pixel_std = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        """Number of feature-map channels, D."""
        return self.widths[-1]

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w D"]:
        """Compute the feature map.

        Args:
            x_BHWC: images, normalised by `pixel_mean` and `pixel_std`.
            train: use batch statistics and update the running ones (collection `batch_stats`).

        Returns:
            The output of conv5 after its ReLU, shape (B, h, w, channels), of type `dtype`.
        """
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        norm = partial(norm, dtype=self.dtype, axis_name=self.axis_name)
        instance_norm = partial(nn.InstanceNorm, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)

        def conv1x1(features: int, name: str) -> nn.Module:
            return Conv1x1(features, 1, self.matmul_1x1, self.dtype, name=name)

        def depthwise(name: str) -> nn.Module:
            fields: Any = {"symmetric": True, "kernel_init": kaiming_fan_out}
            return DepthwiseConv(3, 1, self.cpu_depthwise, self.dtype, **fields, name=name)

        stem = partial(StemConv, self.widths[0], pad_channels=self.cpu_stem, dtype=self.dtype)
        x_BHWC = nn.relu(ConvNorm(stem, instance_norm if self.instance_stem else norm, name="conv1")(x_BHWC))
        x_BHWC = max_pool(x_BHWC, by_slices=self.cpu_stem)
        for stage, (features, kinds) in enumerate(zip(self.widths[1:], self.norms, strict=True)):
            block = partial(OmniScaleBlock, features, streams=self.layout.streams, conv1x1=conv1x1, depthwise=depthwise)
            for index, kind in enumerate(kinds):
                norms: Any = {"kind": kind, "norm": norm, "instance_norm": instance_norm, "dtype": self.dtype}
                x_BHWC = block(**norms, name=f"conv{stage + 2}_{index}")(x_BHWC)
            if stage < len(self.layout.transitions):
                transition = ConvNorm(partial(conv1x1, features), norm, name=self.layout.transitions[stage])
                x_BHWC = _average_pool(nn.relu(transition(x_BHWC)), 2 if stage == 0 else self.last_stride)
        return nn.relu(ConvNorm(partial(conv1x1, self.channels), norm, name="conv5")(x_BHWC))

    @staticmethod
    def torch_name(path: str | Sequence[str]) -> str:
        """Return the name of a parameter or running statistic in torchreid's state dict.

        The mapping is one to one: `conv2_0/conv2b_1/bn/scale` becomes `conv2.0.conv2b.1.bn.weight`. Kernels are HWIO in
        flax and OIHW in torch, and those of the gates (in, out) in flax and 1x1 convolutions in torch.

        Args:
            path: keys from the root of `params` or `batch_stats`, as a sequence or joined by "/", optionally preceded
                by the name of the collection.

        Raises:
            ValueError: the path does not belong to this network.
        """
        keys = path.split("/") if isinstance(path, str) else list(path)
        keys = keys[1:] if keys[:1] in (["params"], ["batch_stats"]) else keys
        outer = len(keys) == 3 and keys[1] in ("conv", "bn")
        block = len(keys) in (3, 4) and keys[0][:-1] in ("conv2_", "conv3_", "conv4_")
        if not (outer or block) or keys[-1] not in _TORCH:
            raise ValueError(f"{path!r} is not a path of an OSNet, such as 'conv2_0/conv2a/conv1/kernel'")
        return ".".join([key.replace("_", ".") for key in keys[:-1]] + [_TORCH[keys[-1]]])


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _average_pool(x_BHWC: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
    """Average over windows of size x size positions, omitting the positions at the end that fill no window."""
    batch, height, width, channels = x_BHWC.shape
    rows, columns = height // size, width // size
    x_BHWC = x_BHWC[:, : rows * size, : columns * size]
    return x_BHWC.reshape(batch, rows, size, columns, size, channels).mean(axis=(2, 4))


def build(name: str, **fields: Any) -> OSNet:
    """Build a member of the family, using the implementations that are fast on the current backend.

    Args:
        name: a key of `STAGES`.
        **fields: fields of `OSNet`. `matmul_1x1`, `cpu_depthwise` and `cpu_stem` default to True on the CPU backend and
            False on others. They affect the speed, but not the parameters or, apart from rounding, the result.

    Raises:
        UserError: last_stride is neither 1 nor 2.
    """
    stride = fields.get("last_stride", 2)
    if stride not in (1, 2):
        raise UserError(
            f"backbone {name!r}: found last_stride={stride!r}, expected 1 or 2; change config.model.backbone_fields"
        )
    on_cpu = jax.default_backend() == "cpu"
    defaults = STAGES[name]._asdict() | dict.fromkeys(("matmul_1x1", "cpu_depthwise", "cpu_stem"), on_cpu)
    return OSNet(**(defaults | fields))
