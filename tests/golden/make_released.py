"""Golden values of the released recipe, computed by PyTorch in float64.

Run `python tests/golden/make_released.py` with PyTorch (2.13.0, CPU) to write released.npz beside this file.
The network below follows the names and the layers of the authors' released checkpoints (a state dict of PyTorch) in this
file's own words, with narrow stages; the pair stage is literal: every pair is one image of twice the width, with one
2N x 2N graph. Weights and images come from NumPy generators seeded by name: the test makes them again without PyTorch.
Dropout is off: its masks cannot be the same in two libraries.
"""

import json
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("released.npz")
SEED = 11
STAGES, WIDTH = (1, 2, 3, 2), 8
CHANNELS, EMBED_DIM, IDENTITIES = WIDTH * 32, 12, 5
SHAPE = (6, 64, 32)
LABELS = (3, 0, 3, 0, 1, 1)
MARGIN, ALPHA, SMOOTHING = 0.5, 0.9, 0.1
# Gradients of the sum of the losses that are stored.
GRADIENTS = (
    "gemp.p", "pair_graph.y.weight", "pair_graph.g.weight", "pair_graph.o.weight", "embedding_layer.0.weight",
    "embedding_layer.1.weight", "fc_layer.2.weight", "pair_fc_layer.2.weight", "resnet.conv1.weight",
    "resnet.layer4.0.non_local_block.theta.weight", "resnet.layer2.0.non_local_block.W.bias",
)  # fmt: skip
STATISTICS = tuple(
    f"{name}.running_{what}"
    for name in ("resnet.bn1", "resnet.layer2.1.bn1", "resnet.layer4.1.bn2", "embedding_layer.1")
    for what in ("mean", "var")
)


def thin(gradient: np.ndarray) -> np.ndarray:
    """Every eighth row and column of what is large."""
    rows = gradient[:: 8 if len(gradient) > 64 else 1]
    return rows[:, :: 8 if rows.shape[1] > 64 else 1] if rows.ndim > 1 else rows


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the tensor of a state-dict name, float64 of float32 precision; batch norms get statistics of their own."""
    return _draw(name, shape).astype(np.float32).astype(np.float64)


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if name == "gemp.p":
        return np.array([2.6])
    if len(shape) > 1:
        # So that a softmax is not one-hot, and a map not the graph's part of it alone.
        small = 0.2 if "non_local_block" in name or name == "pair_graph.o.weight" else 1.0
        return rng.standard_normal(shape) * small * np.sqrt(2.0 / np.prod(shape[1:]))
    if name.endswith("running_var") or name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.standard_normal(shape)


def images() -> np.ndarray:
    """Draw float64 images (B, H, W, 3) of float32 precision, each with colours of its own."""
    rng = np.random.default_rng([SEED, *SHAPE])
    drawn = np.geomspace(0.1, 3, SHAPE[0])[:, None, None, None] * rng.standard_normal((*SHAPE, 3))
    coarse = 1.5 * rng.standard_normal((SHAPE[0], 4, 2, 3))
    drawn += coarse.repeat(SHAPE[1] // 4, axis=1).repeat(SHAPE[2] // 2, axis=2)
    return drawn.astype(np.float32).astype(np.float64)


def make_network():
    """Build the network in float64 with the weights above."""
    import torch
    from torch import nn

    def conv(inputs, outputs, size=1, stride=1, bias=False):
        return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)

    class NonLocal(nn.Module):
        def __init__(self, channels):
            super().__init__()
            for name in ("g", "theta", "phi"):
                setattr(self, name, conv(channels, channels // 16, bias=True))
            self.W = conv(channels // 16, channels, bias=True)

        def forward(self, x):
            g, theta, phi = (layer(x).flatten(2) for layer in (self.g, self.theta, self.phi))
            shares = torch.softmax(torch.einsum("bcn,bcm->bnm", theta, phi), dim=2)
            drawn = torch.einsum("bnm,bcm->bcn", shares, g)
            return x + self.W(drawn.unflatten(2, x.shape[2:]))

    class Block(nn.Module):
        def __init__(self, inputs, width, stride, non_local):
            super().__init__()
            outputs = 4 * width
            self.conv1, self.bn1 = conv(inputs, width), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = conv(width, outputs), nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride > 1 or inputs != outputs:
                self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            self.non_local_block = NonLocal(outputs) if non_local else None

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = torch.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))
            return y if self.non_local_block is None else self.non_local_block(y)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, WIDTH, 7, 2), nn.BatchNorm2d(WIDTH)
            inputs = WIDTH
            for stage, count in enumerate(STAGES):
                blocks = []
                for index in range(count):
                    stride = (1, 2, 2, 1)[stage] if index == 0 else 1
                    blocks.append(Block(inputs, WIDTH * 2**stage, stride, stage > 0 and index == count - 2))
                    inputs = WIDTH * 2**stage * 4
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
            return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    class PairGraph(nn.Module):
        """On images of two maps side by side, (pairs, D, h, 2 w)."""

        def __init__(self):
            super().__init__()
            self.y, self.g = conv(CHANNELS, CHANNELS // 16), conv(CHANNELS, CHANNELS // 16)
            self.o = conv(CHANNELS // 16, CHANNELS)

        def forward(self, x):
            y, g = self.y(x).flatten(2), self.g(x).flatten(2)
            y = y / (y.norm(dim=1, keepdim=True) + 1e-12)
            adjacency = torch.relu(torch.einsum("pcn,pcm->pnm", y, y))
            adjacency = adjacency * (1 - torch.eye(adjacency.shape[1], dtype=x.dtype))
            degree = adjacency.sum(dim=2)
            root = torch.where(degree > 1e-3, degree, torch.ones_like(degree)).rsqrt().detach()
            laplacian = root[:, :, None] * (torch.diag_embed(degree) - adjacency) * root[:, None, :]
            return x + self.o(torch.einsum("pcn,pnm->pcm", g, laplacian).unflatten(2, x.shape[2:]))

    class GeneralisedMean(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x.clamp(min=1e-6).pow(self.p).mean(dim=(2, 3), keepdim=True).pow(1 / self.p)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.resnet, self.pair_graph, self.gemp = ResNet(), PairGraph(), GeneralisedMean()
            self.embedding_layer = nn.Sequential(conv(CHANNELS, EMBED_DIM), nn.BatchNorm2d(EMBED_DIM))
            for name in ("fc_layer", "pair_fc_layer"):
                linear = nn.Linear(EMBED_DIM, IDENTITIES, bias=False)
                setattr(self, name, nn.Sequential(nn.ReLU(), nn.Dropout(0.0), linear))

        def encode(self, maps):
            return self.embedding_layer(self.gemp(maps)).flatten(1)

        def forward(self, x):
            """f(I), f(u|v) and f(v|u) of every pair, u along the first axis; each with its logits."""
            maps = self.resnet(x)
            count, width = len(maps), maps.shape[3]
            target, context = maps.repeat_interleave(count, dim=0), maps.repeat(count, 1, 1, 1)
            both = self.pair_graph(torch.cat([target, context], dim=3))
            f, given, swapped = self.encode(maps), self.encode(both[..., :width]), self.encode(both[..., width:])
            logits = self.fc_layer(f), self.pair_fc_layer(given), self.pair_fc_layer(swapped)
            grid = [x.unflatten(0, (count, count)) for x in (given, swapped, *logits[1:])]
            return f, logits[0], *grid

    network = Network().double()
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(weight(name, tuple(value.shape))))
    return network


def losses(f, logits, given, swapped, given_logits, swapped_logits) -> dict:
    """The five losses of the recipe: the triplet losses see embeddings after the ReLU, both orders of a pair count."""
    import torch
    from torch.nn import functional

    labels, count = torch.tensor(LABELS), len(LABELS)
    same = labels[:, None] == labels[None]

    def unit(x):
        x = torch.relu(x)
        return x / (x.norm(dim=-1, keepdim=True) + 1e-12)

    def triplet(distance):
        hardest = torch.where(same, distance, -torch.inf).amax(dim=1)
        nearest = torch.where(same, torch.inf, distance).amin(dim=1)
        return torch.relu(MARGIN + hardest - nearest).mean()

    def distance(a, b):
        return ((a - b).square().sum(dim=-1) + 1e-24).sqrt()

    def mixup(logits, target, context):
        one = lambda labels: functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return ALPHA * one(target) + (1 - ALPHA) * one(context)

    rows, columns = labels[:, None].expand(count, count), labels[None].expand(count, count)
    return {
        "identity": functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING),
        "triplet": triplet(distance(unit(f)[:, None], unit(f)[None])),
        "pair_identity": mixup(given_logits, rows, columns) + mixup(swapped_logits, columns, rows),
        "pair_triplet": triplet(distance(unit(given), unit(swapped))),
    }


def main() -> None:
    """Compute test and training mode and write the file."""
    import torch

    golden = {"origin": np.array(f"make_released.py with PyTorch {torch.__version__}, float64")}
    x = torch.from_numpy(images()).permute(0, 3, 1, 2)
    names = ("embedding", "logits", "pair_embedding", "swapped", "pair_logits", "swapped_logits")
    for mode in ("test", "train"):
        network = make_network().train(mode == "train")
        encoded = []
        network.embedding_layer[0].register_forward_hook(lambda layer, given, out, into=encoded: into.append(out))
        out = network(x)
        golden |= {f"{mode}/{name}": value.detach().numpy() for name, value in zip(names, out, strict=True)}
        assert torch.allclose(out[2].transpose(0, 1), out[3], rtol=1e-10)
        if mode == "train":
            terms = losses(*out)
            sum(terms.values()).backward()
            golden |= {f"loss/{name}": value.detach().numpy() for name, value in terms.items()}
            parameters = dict(network.named_parameters())
            golden |= {f"gradient/{name}": thin(parameters[name].grad.numpy()) for name in GRADIENTS}
            # Biased: of the images, of the grid, of its transpose.
            golden["train/variances"] = np.stack([y.detach().var(dim=(0, 2, 3), correction=0).numpy() for y in encoded])
            state = network.state_dict()
            golden |= {f"state/{name}": state[name].numpy() for name in STATISTICS}
    del golden["test/swapped"], golden["test/swapped_logits"], golden["train/swapped"], golden["train/swapped_logits"]
    golden["shapes"] = np.array(json.dumps({name: list(value.shape) for name, value in state.items()}))
    np.savez_compressed(PATH, **golden)


if __name__ == "__main__":
    main()
