"""Golden activations of torchvision's ResNets, computed by PyTorch in float64.

Run `python tests/golden/make_resnet.py` with PyTorch (2.13.0, CPU) to write resnet.npz beside this file.
The networks below follow torchvision's v1.5 architecture and state-dict names in this file's own words,
without the classifier; torchvision itself is not needed. IBN-a (Pan et al. 2018, arXiv:1807.09441) replaces the
first norm of a block in stages 1 to 3: instance norm `IN` on the first half of the channels, batch norm `BN` on
the rest. Weights and images come from NumPy generators seeded by name: the test makes them again without PyTorch,
and the file stays small. Of the maps every CHANNEL_STEP-th channel is stored, and the sum over all of them.
"""

import json
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("resnet.npz")
SEED = 7
CHANNEL_STEP = 16
TRAIN_CASE = ("resnet18", 1, (3, 45, 27))
# (network, last stride, (batch, height, width)); 61 x 35 is odd at several depths, where wrong padding shows.
CASES = {
    "resnet50_s1": ("resnet50", 1, (1, 64, 32)),
    "resnet50_s1_odd": ("resnet50", 1, (1, 61, 35)),
    "resnet50_s2_odd": ("resnet50", 2, (1, 61, 35)),
    "resnet18_s1": ("resnet18", 1, (2, 64, 32)),
    "resnet18_s2_odd": ("resnet18", 2, (1, 61, 35)),
    "resnet18_ibn_a_s1_odd": ("resnet18_ibn_a", 1, (1, 61, 35)),
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the float64 tensor of a state-dict name; batch norms get statistics of their own too."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if len(shape) == 4:
        return rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    if name.endswith("running_var") or name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.standard_normal(shape)


def image(shape: tuple[int, int, int]) -> np.ndarray:
    """Draw float64 images (B, H, W, 3)."""
    return np.random.default_rng([SEED, *shape]).standard_normal((*shape, 3))


def make_network(name: str, last_stride: int):
    """Build a network without classifier, in float64, with the weights above."""
    import torch
    from torch import nn

    class Mixed(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.half = channels // 2
            self.IN = nn.InstanceNorm2d(self.half, affine=True)
            self.BN = nn.BatchNorm2d(channels - self.half)

        def forward(self, x):
            return torch.cat([self.IN(x[:, : self.half]), self.BN(x[:, self.half :])], dim=1)

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, mixed: bool):
            super().__init__()
            outputs = width * 4 if bottleneck else width
            if bottleneck:
                shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            else:
                shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
            self.depth = len(shapes)
            for i, (c, d, k, s) in enumerate(shapes, start=1):
                setattr(self, f"conv{i}", nn.Conv2d(c, d, k, stride=s, padding=k // 2, bias=False))
                setattr(self, f"bn{i}", Mixed(d) if mixed and i == 1 else nn.BatchNorm2d(d))
            self.downsample = None
            if stride != 1 or inputs != outputs:
                skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
                self.downsample = nn.Sequential(skip, nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = x
            for i in range(1, self.depth + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                if i < self.depth:
                    y = torch.relu(y)
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(nn.Module):
        def __init__(self, blocks: tuple[int, ...], bottleneck: bool, ibn: bool):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            inputs = 64
            for stage, count in enumerate(blocks):
                width = 64 * 2**stage
                outputs = width * 4 if bottleneck else width
                stride = (1, 2, 2, last_stride)[stage]
                row = [
                    Block(inputs if i == 0 else outputs, width, stride if i == 0 else 1, bottleneck, ibn and stage < 3)
                    for i in range(count)
                ]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*row))
                inputs = outputs

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
            outputs = {}
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
                outputs[f"layer{stage}"] = x
            return outputs

    family = name.removesuffix("_ibn_a")
    blocks, bottleneck = {"resnet50": ((3, 4, 6, 3), True), "resnet18": ((2, 2, 2, 2), False)}[family]
    network = Network(blocks, bottleneck, ibn=family != name).double()
    state = network.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    return network


def main() -> None:
    """Compute every case and write the file."""
    import torch

    origin = f"make_resnet.py with PyTorch {torch.__version__}, float64"
    golden: dict[str, np.ndarray] = {"origin": np.array(origin)}

    def as_input(shape):
        return torch.from_numpy(image(shape)).permute(0, 3, 1, 2)

    with torch.no_grad():
        for case, (name, last_stride, shape) in CASES.items():
            network = make_network(name, last_stride).eval()
            for layer, out in network(as_input(shape)).items():
                out_BHWC = out.permute(0, 2, 3, 1).numpy()
                golden[f"{case}/{layer}"] = out_BHWC[..., ::CHANNEL_STEP]
                golden[f"{case}/{layer}/sum"] = out_BHWC.sum(axis=-1)
            shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
            golden[f"{name}/state"] = np.array(json.dumps(shapes))
        name, last_stride, shape = TRAIN_CASE
        network = make_network(name, last_stride).train()
        out = network(as_input(shape))["layer4"]
        golden["train/layer4"] = out.permute(0, 2, 3, 1).numpy()[..., ::CHANNEL_STEP]
        for key, value in network.state_dict().items():
            if "running" in key:
                golden[f"train/{key}"] = value.numpy()[::CHANNEL_STEP]
    np.savez_compressed(PATH, **golden)


if __name__ == "__main__":
    main()
