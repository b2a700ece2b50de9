"""Names, layouts and shapes: every way in which a file fits a backbone, or does not."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from cacenet_jax.errors import UserError
from cacenet_jax.models import backbones
from cacenet_jax.pretrained import backbone as pretrained

NET = backbones.build("resnet_tiny")


@pytest.fixture(scope="module")
def variables():
    """Of a tiny ResNet, random."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), pretrained.shapes(NET, 32, 16))


def named(variables, net=NET):
    """A state dict in PyTorch's names and layout."""
    flat = traverse_util.flatten_dict(variables)
    return {
        net.torch_name(path): np.array(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x, order="C")
        for path, x in flat.items()
    }


@pytest.fixture
def load(tmp_path):
    def load(arrays, like, net=NET):
        save_file(arrays, tmp_path / "weights.safetensors")
        return pretrained.load(str(tmp_path / "weights.safetensors"), net, like, "resnet_tiny")

    return load


def assert_equal(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected)


def test_a_files_weights_become_parameters_and_statistics(load, variables):
    arrays = named(variables)
    others = {"fc.weight": np.ones((5, 64), np.float32), "bn1.num_batches_tracked": np.array(7)}
    fitted = load(arrays | others, variables)
    assert_equal(fitted.variables, variables)
    assert fitted.num_loaded == len(arrays) == 60 and fitted.added == []
    assert sorted(fitted.ignored) == sorted(others)
    kernel = fitted.variables["params"]["layer2_0"]["conv1"]["kernel"]
    assert kernel[0, 2, 3, 4] == arrays["layer2.0.conv1.weight"][4, 3, 0, 2]  # row, column, in, out


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "base.", "model.", "module.resnet."])
def test_prefixes_are_taken_off_and_what_is_beside_a_backbone_is_passed_over(load, variables, prefix):
    arrays = {prefix + name: x for name, x in named(variables).items()}
    heads = {"heads.bottleneck.weight": np.ones(4, np.float32)}
    fitted = load(arrays | heads, variables)
    assert_equal(fitted.variables, variables)
    assert fitted.ignored == list(heads)


def test_half_precision_is_widened(load, variables):
    fitted = load({name: x.astype(np.float16) for name, x in named(variables).items()}, variables)
    assert_equal(fitted.variables, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), variables))


def test_depthwise_kernels_and_the_head_that_lite_can_leave_out(load):
    net = backbones.build("efficientnet_lite0")
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), pretrained.shapes(net, 64, 32))
    arrays = named(variables, net)
    assert arrays["_blocks.1._depthwise_conv.weight"].shape == (96, 1, 3, 3)
    assert_equal(load(arrays, variables, net).variables, variables)
    headless = backbones.build("efficientnet_lite0", head=False)
    fitted = load(arrays, pretrained.shapes(headless, 64, 32), headless)
    assert_equal(fitted.variables["params"]["blocks_15"], variables["params"]["blocks_15"])
    assert {name.split(".")[0] for name in fitted.ignored} == {"_conv_head", "_bn1"} and "bn1" not in fitted.variables[
        "params"
    ]


def test_layers_that_published_networks_lack_keep_their_start_unless_the_file_has_them(load):
    net = backbones.build("resnet18", non_local=True)
    rng = np.random.default_rng(3)
    shapes = pretrained.shapes(net, 64, 32)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    arrays = named(variables, net)
    added = {name for name in arrays if "non_local_block" in name}
    plain = {name: x for name, x in arrays.items() if name not in added}
    start = jax.tree.map(np.zeros_like, variables)
    fitted = load(plain, start, net)
    assert set(fitted.added) == added and len(added) == 24
    block = fitted.variables["params"]["layer2_0"]
    assert not block["non_local_block"]["g"]["kernel"].any() and block["conv1"]["kernel"].any()
    matrices = {name: x.T[..., None, None] if x.ndim == 2 else x for name, x in arrays.items()}  # 1x1 convolutions
    assert_equal(load({n: np.array(x, order="C") for n, x in matrices.items()}, start, net).variables, variables)
    with pytest.raises(UserError, match=r"missing in the file \(1\): layer3.0.non_local_block.W.bias"):
        load(
            {n: np.array(x, order="C") for n, x in matrices.items() if n != "layer3.0.non_local_block.W.bias"},
            start,
            net,
        )


def test_all_mismatches_are_reported_in_one_error(load, variables):
    arrays = named(variables)
    del arrays["conv1.weight"], arrays["layer4.0.bn2.running_var"]
    arrays["layer3.1.conv1.weight"] = np.zeros((2, 2), np.float32)
    arrays["layer1.0.bn1.bias"] = np.zeros(9, np.float32)
    arrays["layer2.0.bn1.bias"] = np.full(16, np.nan, np.float32)
    arrays["layer2.0.bn1.weight"] = np.ones(16, np.int64)
    with pytest.raises(UserError) as caught:
        load(arrays, variables)
    first, *lines = str(caught.value).splitlines()
    assert "does not fit resnet_tiny (2 missing, 1 not expected, 1 of another shape, 2 unusable)" in first
    assert lines == [
        "  missing in the file (2): conv1.weight, layer4.0.bn2.running_var",
        "  not in resnet_tiny (1): layer3.1.conv1.weight",
        "  of another shape in the file than in resnet_tiny (1): layer1.0.bn1.bias (9,) against (8,)",
        "  unusable in the file (2): layer2.0.bn1.bias with NaN or infinity, layer2.0.bn1.weight of type int64",
    ]


def test_long_lists_are_cut_with_a_count(load, variables):
    with pytest.raises(UserError, match=r"missing in the file \(59\): .*, and 51 more"):
        load({"conv1.weight": named(variables)["conv1.weight"]}, variables)


def test_another_backbones_file_is_told(load, variables):
    with pytest.raises(UserError, match=r"does not fit resnet_tiny \(60 of another shape"):
        wide = backbones.build("resnet_small")
        load(named(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), pretrained.shapes(wide, 32, 16))), variables)


def test_a_backbone_without_published_weights_is_told(load, variables, monkeypatch):
    arrays = named(variables)

    def torch_name(path):
        raise ValueError("no names")

    monkeypatch.setattr(type(NET), "torch_name", staticmethod(torch_name))
    with pytest.raises(UserError, match=r"resnet_tiny, which has no published weights \(no names\)"):
        load(arrays, variables)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module.encoder_q.", "student.net.0."])
def test_any_prefix_that_all_names_share_is_taken_off(load, variables, prefix):
    arrays = {prefix + name: x for name, x in named(variables).items()}
    fitted = load(arrays | {prefix + "fc.weight": np.ones((2, 4), np.float32), "queue": np.ones(4)}, variables)
    assert_equal(fitted.variables, variables)
    assert sorted(fitted.ignored) == sorted(["fc.weight", "queue"])


def test_two_networks_in_a_file_are_told(load, variables):
    arrays = {f"module.encoder_{kind}.{name}": x for name, x in named(variables).items() for kind in "qk"}
    with pytest.raises(
        UserError, match=r"2 networks, .* begin with module.encoder_k., module.encoder_q., expected one"
    ):
        load(arrays, variables)


def test_names_of_a_file_cannot_write_to_the_terminal(load, variables):
    arrays = named(variables) | {"\x1b[31mred\nerror: fine" + "x" * 500: np.ones(1, np.float32)}
    with pytest.raises(UserError) as caught:
        load(arrays, variables)
    assert all(line.isprintable() and len(line) < 400 for line in str(caught.value).splitlines())
    assert "\\x1b[31mred\\nerror: fine" in str(caught.value)
