"""Golden activations of torchvision's MobileNetV2, computed by PyTorch in float64.

Run `python tests/golden/make_mobilenet_v2.py` with PyTorch (2.13.0, CPU) to write mobilenet_v2.npz beside this file. The
network below follows torchvision's architecture and state-dict names in this file's own words, without the classifier;
torchvision itself is not needed. Weights and images come from NumPy generators seeded by name: the test makes them again
without PyTorch, and the file stays small. Of the maps every CHANNEL_STEP-th channel is stored, and the sum over all.
"""

import json
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("mobilenet_v2.npz")
SEED = 17
CHANNEL_STEP = 16
# case: (last stride, (batch, height, width)); 61 x 35 is odd at several depths, where wrong padding shows.
CASES = {"s1": (1, (1, 64, 32)), "s2_odd": (2, (1, 61, 35))}
TRAIN_CASE = (2, (3, 45, 27))
# Blocks whose output is stored: the last of each stage.
BLOCKS = (1, 3, 6, 10, 13, 16, 17)
# Expansion, channels, repeats, stride: table 2 of Sandler et al. 2018.
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the float64 tensor of a state-dict name; batch norms get statistics of their own too."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if len(shape) == 4:
        return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    if name.endswith("running_var") or name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.standard_normal(shape)


def image(shape: tuple[int, int, int]) -> np.ndarray:
    """Draw float64 images (B, H, W, 3)."""
    return np.random.default_rng([SEED, *shape]).standard_normal((*shape, 3))


def build_network(last_stride: int = 2):
    """Build the network without classifier, with PyTorch's initial weights."""
    from torch import nn

    def unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expand: int):
            super().__init__()
            inner = inputs * expand
            layers = [unit(inputs, inner, 1)] if expand > 1 else []
            layers += [unit(inner, inner, 3, stride, groups=inner)]
            layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.conv, self.skip = nn.Sequential(*layers), stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.conv(x) if self.skip else self.conv(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            layers, inputs = [unit(3, 32, 3, 2)], 32
            for expand, outputs, repeats, stride in TABLE:
                stride = last_stride if outputs == 160 else stride
                for index in range(repeats):
                    layers.append(Block(inputs, outputs, 1 if index else stride, expand))
                    inputs = outputs
            self.features = nn.Sequential(*layers, unit(inputs, 1280, 1))

        def forward(self, x):
            outputs = {}
            for index, layer in enumerate(self.features):
                x = outputs[f"features_{index}"] = layer(x)
            return {f"features_{i}": outputs[f"features_{i}"] for i in BLOCKS} | {"head": x}

    return Network().double()


def make_network(last_stride: int = 2):
    """Build the network with the weights above."""
    import torch

    network = build_network(last_stride)
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    return network


def main() -> None:
    """Compute every case and write the file."""
    import torch

    golden: dict[str, np.ndarray] = {
        "origin": np.array(f"make_mobilenet_v2.py with PyTorch {torch.__version__}, float64")
    }

    def run(prefix: str, network, shape: tuple[int, int, int]) -> None:
        for name, out in network(torch.from_numpy(image(shape)).permute(0, 3, 1, 2)).items():
            out_BHWC = out.permute(0, 2, 3, 1).numpy()
            golden[f"{prefix}/{name}"] = out_BHWC[..., ::CHANNEL_STEP]
            golden[f"{prefix}/{name}/sum"] = out_BHWC.sum(axis=-1)
        inside = ((out > 0) & (out < 6)).double().mean().item()
        print(f"{prefix}: {inside:.0%} of the head's values between the bounds of ReLU6")

    with torch.no_grad():
        for case, (last_stride, shape) in CASES.items():
            run(case, make_network(last_stride).eval(), shape)
        last_stride, shape = TRAIN_CASE
        network = make_network(last_stride).train()
        run("train", network, shape)
        for key, value in network.state_dict().items():
            if "running" in key:
                golden[f"train/{key}"] = value.numpy()[::CHANNEL_STEP]
    golden["state"] = np.array(json.dumps({key: list(value.shape) for key, value in network.state_dict().items()}))
    np.savez_compressed(PATH, **golden)


if __name__ == "__main__":
    main()
