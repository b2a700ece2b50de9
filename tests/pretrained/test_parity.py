"""From a file of weights to maps: float32 against PyTorch's.

tests/golden/resnet.npz holds PyTorch's maps in float64 (origin: make_resnet.py beside it, which makes the weights again).
The slow test, where PyTorch is installed, runs it beside ours on the whole network and images of 256 x 128.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cacenet_jax.models import backbones
from cacenet_jax.pretrained import backbone as pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("maker", GOLDEN / "make_resnet.py")
MAKER = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKER)


def maps_of(path, name, last_stride, images_BHWC):
    """Float32 maps of a backbone that starts from a file."""
    net = backbones.build(name, last_stride=last_stride)
    like = pretrained.shapes(net, *images_BHWC.shape[1:3])
    variables = pretrained.load(str(path), net, like, name).variables
    maps_BHWD = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, jnp.asarray(images_BHWC, jnp.float32))
    assert maps_BHWD.dtype == jnp.float32
    return np.asarray(maps_BHWD)


def relative(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


def test_maps_from_a_file_equal_pytorchs(tmp_path):
    """Odd sizes, where wrong padding shows, and both norms; the file as a training script on several devices saves it."""
    case = "resnet18_ibn_a_s1_odd"
    golden = np.load(GOLDEN / "resnet.npz")
    name, last_stride, shape = MAKER.CASES[case]
    state = {
        n: np.asarray(MAKER.weight(n, tuple(size))) for n, size in json.loads(str(golden[f"{name}/state"])).items()
    }
    arrays = {f"module.{n}": x.astype(np.int64 if n.endswith("tracked") else np.float32) for n, x in state.items()}
    save_file(arrays | {"module.fc.bias": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    maps_BHWD = maps_of(tmp_path / "weights.safetensors", name, last_stride, MAKER.image(shape))
    assert relative(maps_BHWD[..., :: MAKER.CHANNEL_STEP], golden[f"{case}/layer4"]) < 1e-5
    assert relative(maps_BHWD.sum(axis=-1), golden[f"{case}/layer4/sum"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("last_stride", [1, 2])
def test_a_whole_resnet50_equals_pytorchs_from_either_file(tmp_path, last_stride):
    torch = pytest.importorskip("torch")
    images = MAKER.image((2, 256, 128))
    network = MAKER.make_network("resnet50", last_stride).eval().float()
    with torch.no_grad():
        maps = network(torch.from_numpy(images).permute(0, 3, 1, 2).float())["layer4"].permute(0, 2, 3, 1).numpy()
    torch.save({"state_dict": network.state_dict(), "epoch": 1}, tmp_path / "weights.pth")
    save_file({name: np.array(x.numpy()) for name, x in network.state_dict().items()}, tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        difference = relative(maps_of(tmp_path / file, "resnet50", last_stride, images), maps)
        print(f"{file}, last stride {last_stride}: largest difference over largest value {difference:.1e}")
        assert difference < 1e-5
