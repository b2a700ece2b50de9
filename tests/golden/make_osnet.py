"""Golden activations of torchreid's OSNets, computed by PyTorch in float64.

Run `python tests/golden/make_osnet.py` with PyTorch (2.13.0, CPU) to write osnet.npz beside this file. The networks below
follow torchreid's architecture and state-dict names in this file's own words, without the embedding layer and the
classifier; torchreid itself is not needed. Weights and images come from NumPy generators seeded by name: the test makes
them again without PyTorch, and the file stays small. Of the maps every CHANNEL_STEP-th channel is stored, and the sum over
all of them; of a gradient every GRADIENT_STEP-th number.

`python tests/golden/make_osnet.py FOLDER` writes osnet_published.npz instead: maps of the checkpoints of PUBLISHED in that
folder, and the sha256 of each.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("osnet.npz")
PUBLISHED_PATH = Path(__file__).with_name("osnet_published.npz")
SEED = 13
CHANNEL_STEP = 16
GRADIENT_STEP = 37
SHAPE = (1, 64, 32)
# Training: OSNet-AIN with one block in each of two stages. 45 x 27 is odd at several depths, where wrong padding shows.
TRAIN_WIDTHS, TRAIN_INSIDE = (16, 128, 192), ((False,), (True,))
TRAIN_SHAPE = (3, 45, 27)
PUBLISHED_SHAPE = (2, 64, 32)
PUBLISHED = ("osnet_x0_25_market1501.pth", "osnet_x0_25_msmt17.pth")
# Channels of the stem and the stages.
WIDTHS = {
    "osnet_x1_0": (64, 256, 384, 512),
    "osnet_x0_75": (48, 192, 288, 384),
    "osnet_x0_5": (32, 128, 192, 256),
    "osnet_x0_25": (16, 64, 96, 128),
    "osnet_ibn_x1_0": (64, 256, 384, 512),
    "osnet_ain_x1_0": (64, 256, 384, 512),
}
# Blocks of OSNet-AIN with instance norm in the residual branch (Zhou et al. 2021, figure 4).
AIN = ((True, True), (False, True), (True, False))
PLAIN = ((False, False),) * 3


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


def loss_weights(size: int) -> np.ndarray:
    """Return the weights of the numbers of a map (in the order B, H, W, C) whose weighted mean is differentiated."""
    return np.cos(np.arange(size))


def build_network(widths: tuple[int, ...], inside: tuple[tuple[bool, ...], ...], ain: bool, ibn: bool):
    """Build a network without embedding layer and classifier, with PyTorch's initial weights.

    `inside`: which blocks of each stage have instance norm in the residual branch.
    """
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int = 1, **kind):
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **kind)

    class ConvNorm(nn.Module):
        def __init__(self, convolution, norm, relu: bool = True):
            super().__init__()
            self.conv, self.bn, self.relu = convolution, norm, relu

        def forward(self, x):
            x = self.bn(self.conv(x))
            return torch.relu(x) if self.relu else x

    class Light(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels, 3, groups=channels)
            self.bn = nn.BatchNorm2d(channels)

        def forward(self, x):
            return torch.relu(self.bn(self.conv2(self.conv1(x))))

    class Chain(nn.Module):
        def __init__(self, channels: int, depth: int):
            super().__init__()
            self.layers = nn.Sequential(*(Light(channels) for _ in range(depth)))

        def forward(self, x):
            return self.layers(x)

    class Gate(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(channels, channels // 16, 1), nn.Conv2d(channels // 16, channels, 1)

        def forward(self, x):
            mean = x.mean((2, 3), keepdim=True)
            return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))

    class Block(nn.Module):
        """`ain`: streams named as in OSNet-AIN. `inside`, `after`: instance norm in the branch, and of the sum."""

        def __init__(self, inputs: int, outputs: int, ain: bool, inside: bool, after: bool):
            super().__init__()
            inner = outputs // 4
            self.conv1 = ConvNorm(conv(inputs, inner), nn.BatchNorm2d(inner))
            self.ain, self.inside, self.after = ain, inside, after
            if ain:
                self.conv2 = nn.ModuleList(Chain(inner, depth) for depth in (1, 2, 3, 4))
            else:
                self.conv2a = Light(inner)
                for letter, depth in (("b", 2), ("c", 3), ("d", 4)):
                    self.add_module(f"conv2{letter}", nn.Sequential(*(Light(inner) for _ in range(depth))))
            self.gate = Gate(inner)
            self.conv3 = ConvNorm(
                conv(inner, outputs), nn.Identity() if inside else nn.BatchNorm2d(outputs), relu=False
            )
            self.downsample = None
            if inputs != outputs:
                self.downsample = ConvNorm(conv(inputs, outputs), nn.BatchNorm2d(outputs), relu=False)
            if inside or after:
                self.IN = nn.InstanceNorm2d(outputs, affine=True)

        def forward(self, x):
            y = self.conv1(x)
            streams = self.conv2 if self.ain else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
            y = self.conv3(sum(self.gate(stream(y)) for stream in streams))
            if self.inside:
                y = self.IN(y)
            y = y + (x if self.downsample is None else self.downsample(x))
            return torch.relu(self.IN(y) if self.after else y)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            norm = nn.InstanceNorm2d(widths[0], affine=True) if ain or ibn else nn.BatchNorm2d(widths[0])
            self.conv1, self.stages = ConvNorm(conv(3, widths[0], 7, stride=2), norm), range(2, 2 + len(inside))
            for stage, kinds in zip(self.stages, inside, strict=True):
                inputs, outputs = widths[stage - 2 : stage]
                row = [
                    Block(outputs if index else inputs, outputs, ain, kind, ibn and stage == 2)
                    for index, kind in enumerate(kinds)
                ]
                if stage < 4:
                    shrink = nn.Sequential(
                        ConvNorm(conv(outputs, outputs), nn.BatchNorm2d(outputs)), nn.AvgPool2d(2, 2)
                    )
                    if ain:
                        self.add_module(f"pool{stage}", shrink)
                    else:
                        row.append(shrink)
                self.add_module(f"conv{stage}", nn.Sequential(*row))
            self.conv5 = ConvNorm(conv(widths[-1], widths[-1]), nn.BatchNorm2d(widths[-1]))

        def forward(self, x):
            x = nn.functional.max_pool2d(self.conv1(x), 3, stride=2, padding=1)
            outputs = {}
            for stage, kinds in zip(self.stages, inside, strict=True):
                layers = list(getattr(self, f"conv{stage}"))
                for block in layers[: len(kinds)]:
                    x = outputs[f"conv{stage}_1"] = block(x)
                shrink = layers[len(kinds) :] or [getattr(self, f"pool{stage}")] if stage < 4 else []
                for layer in shrink:
                    x = layer(x)
            return outputs | {"conv5": self.conv5(x)}

    return Network().double()


def published_network(name: str):
    """Build a member of the family."""
    ain = "ain" in name
    return build_network(WIDTHS[name], AIN if ain else PLAIN, ain, ibn="ibn" in name)


def fill(network):
    """Set the weights above."""
    import torch

    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    return network


def as_input(shape: tuple[int, int, int]):
    """The images, in PyTorch's layout."""
    import torch

    return torch.from_numpy(image(shape)).permute(0, 3, 1, 2)


def main() -> None:
    """Compute every case and write osnet.npz."""
    import torch

    golden: dict[str, np.ndarray] = {"origin": np.array(f"make_osnet.py with PyTorch {torch.__version__}, float64")}

    def store(name: str, out_BCHW) -> None:
        out_BHWC = out_BCHW.detach().permute(0, 2, 3, 1).numpy()
        golden[name] = out_BHWC[..., ::CHANNEL_STEP]
        golden[f"{name}/sum"] = out_BHWC.sum(axis=-1)

    for name in WIDTHS:
        network = fill(published_network(name)).eval()
        with torch.no_grad():
            outputs = network(as_input(SHAPE))
        for layer, out in outputs.items():
            store(f"{name}/{layer}", out)
        print(f"{name}: {(outputs['conv5'] > 0).double().mean().item():.0%} of the last map is positive")
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        golden[f"{name}/state"] = np.array(json.dumps(shapes))
    network = fill(build_network(TRAIN_WIDTHS, TRAIN_INSIDE, ain=True, ibn=False)).train()
    maps_BHWC = network(as_input(TRAIN_SHAPE))["conv5"].permute(0, 2, 3, 1)
    (maps_BHWC.flatten() * torch.from_numpy(loss_weights(maps_BHWC.numel()))).mean().backward()
    store("train/conv5", maps_BHWC.permute(0, 3, 1, 2))
    for key, value in network.state_dict().items():
        if "running" in key:
            golden[f"train/{key}"] = value.numpy()[::CHANNEL_STEP]
    for key, value in network.named_parameters():
        golden[f"train/gradient/{key}"] = value.grad.numpy().ravel()[::GRADIENT_STEP]
    np.savez_compressed(PATH, **golden)


def published(folder: Path) -> None:
    """Compute the maps of the published checkpoints and write osnet_published.npz."""
    import torch

    origin = f"make_osnet.py FOLDER with PyTorch {torch.__version__}, float64"
    golden: dict[str, np.ndarray] = {"origin": np.array(origin)}
    network = published_network("osnet_x0_25")
    for file in PUBLISHED:
        state = torch.load(folder / file, map_location="cpu", weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
        network.load_state_dict(state)
        with torch.no_grad():
            golden[file] = network.eval()(as_input(PUBLISHED_SHAPE))["conv5"].permute(0, 2, 3, 1).numpy()
        golden[f"{file}/sha256"] = np.array(hashlib.sha256((folder / file).read_bytes()).hexdigest())
    np.savez_compressed(PUBLISHED_PATH, **golden)


if __name__ == "__main__":
    published(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
