"""Golden activations of EfficientNet-Lite, computed by PyTorch in float64 with the package efficientnet-lite-pytorch.

Run `python tests/golden/make_efficientnet_lite.py` with PyTorch (2.13.0, CPU) and that package (0.1.0) to write
efficientnet_lite.npz beside this file. Weights and images come from NumPy generators seeded by name: the test makes them
again without PyTorch, and the file stays small. Of the maps every CHANNEL_STEP-th channel is stored, and the sum over all.
"""

import json
import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("efficientnet_lite.npz")
SEED = 11
CHANNEL_STEP = 16
# case: (network, last stride, (batch, height, width)); 61 x 35 is odd at several depths, where wrong padding shows.
CASES = {"s1": ("efficientnet-lite0", 1, (1, 64, 32)), "s2_odd": ("efficientnet-lite0", 2, (1, 61, 35))}
TRAIN_CASE = ("efficientnet-lite0", 2, (3, 45, 27))
# Blocks whose output is stored: the last of each stage.
BLOCKS = (0, 2, 4, 7, 10, 14, 15)
STATES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 tensor of a state-dict name; batch norms get statistics of their own too."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if len(shape) == 4:
        return rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    if name.endswith("running_var") or name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.standard_normal(shape)


def image(shape: tuple[int, int, int]) -> np.ndarray:
    """Float64 images (B, H, W, 3)."""
    return np.random.default_rng([SEED, *shape]).standard_normal((*shape, 3))


def make_network(name: str, last_stride: int = 2):
    """The package's network, which pads for each image's own size, without drop connect, with the weights above."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(name, image_size=None, drop_connect_rate=0.0).double()
    strided = [block._depthwise_conv for block in network._blocks if block._depthwise_conv.stride[0] == 2]
    strided[-1].stride = (last_stride, last_stride)
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    return network


def main() -> None:
    """Compute every case and write the file."""
    import torch

    origin = f"make_efficientnet_lite.py with PyTorch {torch.__version__}, efficientnet-lite-pytorch 0.1.0, float64"
    golden: dict[str, np.ndarray] = {"origin": np.array(origin)}

    def store(name: str, out_BCHW) -> None:
        out_BHWC = out_BCHW.permute(0, 2, 3, 1).numpy()
        golden[name] = out_BHWC[..., ::CHANNEL_STEP]
        golden[f"{name}/sum"] = out_BHWC.sum(axis=-1)

    def run(prefix: str, network, shape: tuple[int, int, int]) -> None:
        hooks = [
            network._blocks[i].register_forward_hook(lambda _, __, out, i=i: store(f"{prefix}/blocks_{i}", out))
            for i in BLOCKS
        ]
        head = network.extract_features(torch.from_numpy(image(shape)).permute(0, 3, 1, 2))
        store(f"{prefix}/head", head)
        inside = ((head > 0) & (head < 6)).double().mean().item()
        print(f"{prefix}: {inside:.0%} of the head's values between the bounds of ReLU6")
        for hook in hooks:
            hook.remove()

    with torch.no_grad():
        for case, (name, last_stride, shape) in CASES.items():
            run(case, make_network(name, last_stride).eval(), shape)
        name, last_stride, shape = TRAIN_CASE
        network = make_network(name, last_stride).train()
        run("train", network, shape)
        for key, value in network.state_dict().items():
            if "running" in key:
                golden[f"train/{key}"] = value.numpy()[::CHANNEL_STEP]
        for name in STATES:
            shapes = {k: list(v.shape) for k, v in make_network(name).state_dict().items()}
            golden[f"{name}/state"] = np.array(json.dumps(shapes))
    np.savez_compressed(PATH, **golden)


if __name__ == "__main__":
    main()
