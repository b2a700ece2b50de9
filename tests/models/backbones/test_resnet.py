"""The ResNet family against PyTorch, and against itself in its several forms.

tests/golden/resnet.npz holds float64 maps that PyTorch 2.13.0 (CPU) computed for random weights and images.
The script beside it, make_resnet.py, wrote it and makes the same weights again here, with NumPy alone.
"""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import golden_variables, shapes_of

from cacenet_jax.errors import UserError
from cacenet_jax.models.backbones import resnet
from cacenet_jax.models.backbones.convolutions import max_pool

GOLDEN_DIR = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def maker():
    """The script that made the golden file (it imports PyTorch only to write)."""
    spec = importlib.util.spec_from_file_location("make_resnet", GOLDEN_DIR / "make_resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN_DIR / "resnet.npz")


@functools.cache
def initial(block, zero_init=False):
    """Parameters of a two-stage network; the forms and types it can be computed in share them."""
    model = resnet.ResNet(stages=(1, 1), block=block, width=8, last_stride=2, zero_init_residual=zero_init)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def small(block="basic", **fields):
    model = resnet.build("resnet_tiny", stages=(1, 1), block=block, last_stride=2, **fields)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((8, 45, 27, 3), np.float32))
    return model, initial(block, model.zero_init_residual), images


def value_and_grad(model, variables, images):
    def loss(params):
        maps, new = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        weights = jnp.cos(jnp.arange(maps.size, dtype=jnp.float32)).reshape(maps.shape)
        return (weights * maps.astype(jnp.float32)).mean(), (maps, new["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def assert_trees_close(actual, expected, tolerance):
    """Compare leaf by leaf, relative to the largest value of the expected leaf."""
    actual, expected = traverse_util.flatten_dict(actual), traverse_util.flatten_dict(expected)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(actual[path], value, rtol=0, atol=tolerance * scale, err_msg=str(path))


def assert_close(actual, expected, tolerance=1e-10):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_resnet50_has_the_size_of_torchvisions_without_classifier():
    params = shapes_of(resnet.resnet50())["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 23_508_032


@pytest.mark.parametrize(
    ("name", "last_stride", "height", "width", "expected"),
    [
        ("resnet50", 1, 384, 128, (24, 8, 2048)),
        ("resnet50", 2, 384, 128, (12, 4, 2048)),
        ("resnet34", 1, 256, 128, (16, 8, 512)),
        ("resnet_small", 1, 128, 64, (8, 4, 256)),
        ("resnet_tiny", 2, 67, 33, (3, 2, 64)),
    ],
)
def test_map_shape_is_what_the_module_promises(name, last_stride, height, width, expected):
    model = resnet.build(name, last_stride=last_stride)
    images = jax.ShapeDtypeStruct((4, height, width, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert maps.shape == (4, *expected)
    assert model.channels == expected[-1]


@pytest.mark.parametrize("name", ["resnet50", "resnet18", "resnet18_ibn_a"])
def test_torch_name_is_a_bijection_onto_the_state_dict(name, golden):
    state = {k: v for k, v in json.loads(str(golden[f"{name}/state"])).items() if "num_batches" not in k}
    named = {}
    for path, leaf in traverse_util.flatten_dict(shapes_of(resnet.build(name))).items():
        torch_name = resnet.torch_name(path)
        assert torch_name not in named
        assert torch_name == resnet.torch_name("/".join(path[1:]))
        named[torch_name] = [leaf.shape[i] for i in (3, 2, 0, 1)] if len(leaf.shape) == 4 else [*leaf.shape]
    assert named == state


def test_torch_name_rejects_other_paths():
    with pytest.raises(ValueError, match="not a path of a ResNet"):
        resnet.torch_name("opt_state/count")


@pytest.mark.parametrize(
    "case",
    ["resnet50_s1", "resnet50_s1_odd", "resnet50_s2_odd", "resnet18_s1", "resnet18_s2_odd", "resnet18_ibn_a_s1_odd"],
)
def test_maps_equal_pytorchs(case, maker, golden):
    name, last_stride, shape = maker.CASES[case]
    with jax.enable_x64(True):
        plain = case.endswith("odd")  # the forms for CPU and for accelerators both meet PyTorch
        fields = {"matmul_1x1": False, "cpu_stem": False} if plain else {"matmul_1x1": True, "cpu_stem": True}
        model = resnet.build(name, last_stride=last_stride, dtype=jnp.float64, **fields)
        variables = golden_variables(maker, model)
        apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
        _, state = apply(variables, jnp.asarray(maker.image(shape)))
    for stage, blocks in enumerate(model.stages, start=1):
        maps_BHWC = np.asarray(state["intermediates"][f"layer{stage}_{blocks - 1}"]["__call__"][0])
        assert maps_BHWC.dtype == np.float64
        assert_close(maps_BHWC[..., :: maker.CHANNEL_STEP], golden[f"{case}/layer{stage}"])
        assert_close(maps_BHWC.sum(axis=-1), golden[f"{case}/layer{stage}/sum"])


def test_training_statistics_equal_pytorchs_up_to_the_unbiased_variance(maker, golden):
    name, last_stride, (batch, height, width) = maker.TRAIN_CASE
    step = maker.CHANNEL_STEP
    with jax.enable_x64(True):
        model = resnet.build(name, last_stride=last_stride, dtype=jnp.float64)
        variables = golden_variables(maker, model)
        apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
        maps_BHWC, new = apply(variables, jnp.asarray(maker.image((batch, height, width))))
    assert_close(np.asarray(maps_BHWC)[..., ::step], golden["train/layer4"])
    old = traverse_util.flatten_dict(variables["batch_stats"])
    for path, value in traverse_util.flatten_dict(jax.tree.map(np.asarray, new["batch_stats"])).items():
        if path[-1] == "var":
            # PyTorch folds in n / (n - 1) times the variance of the n = B * H * W values of a channel.
            depth = 1 if path[0] == "bn1" else min(int(path[0][len("layer")]) + 1, 4)
            n = batch * -(-height // 2**depth) * -(-width // 2**depth)
            batch_variance = (value - 0.9 * old[path]) / 0.1
            value = 0.9 * old[path] + 0.1 * batch_variance * n / (n - 1)
        assert_close(value[::step], golden[f"train/{resnet.torch_name(path)}"])


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_cpu_forms_change_neither_value_nor_gradient(block):
    model, variables, images = small(block, matmul_1x1=False, cpu_stem=False)
    fast, _, _ = small(block, matmul_1x1=True, cpu_stem=True)
    (_, (maps, stats)), grads = value_and_grad(model, variables, images)
    (_, (fast_maps, fast_stats)), fast_grads = value_and_grad(fast, variables, images)
    assert_close(fast_maps, maps, 1e-5)
    assert_trees_close(fast_stats, stats, 1e-5)
    assert_trees_close(fast_grads, grads, 2e-4)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (5, 8), (1, 1)])
def test_max_pool_forms_agree_in_value_and_gradient(size):
    x_BHWC = jax.random.normal(jax.random.key(0), (2, *size, 3))
    weights = jax.random.normal(jax.random.key(1), (2, -(-size[0] // 2), -(-size[1] // 2), 3))

    def loss(x_BHWC, by_slices):
        pooled = max_pool(jax.nn.relu(x_BHWC), by_slices=by_slices)
        assert pooled.shape == weights.shape
        return (weights * pooled).sum()

    grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    windows, slices = grad(x_BHWC, False), grad(x_BHWC, True)
    np.testing.assert_allclose(slices[0], windows[0], rtol=1e-6)
    np.testing.assert_allclose(slices[1], windows[1], atol=1e-6)


@pytest.mark.parametrize("cpu_forms", [False, True])
def test_bfloat16_computes_in_bfloat16_and_stores_float32(cpu_forms):
    model, variables, images = small(dtype=jnp.bfloat16, matmul_1x1=cpu_forms, cpu_stem=cpu_forms)
    (_, (maps, stats)), grads = value_and_grad(model, variables, images)
    assert maps.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((variables, stats, grads)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    reference, _, _ = small()
    exact = jax.jit(lambda v: reference.apply(v, images, train=True, mutable=["batch_stats"])[0])(variables)
    assert_close(np.asarray(maps, np.float32), exact, 0.1)


def test_synchronised_batch_norm_sees_the_global_batch():
    model, variables, images = small()
    maps, new = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    synchronised, _, _ = small(axis_name="devices")

    def apply(images):
        return synchronised.apply(variables, images, train=True, mutable=["batch_stats"])

    sharded = images.reshape(4, 2, *images.shape[1:])
    by_vmap = jax.jit(jax.vmap(apply, axis_name="devices"))
    for mapped in (by_vmap, jax.pmap(apply, axis_name="devices")):
        maps_4, new_4 = mapped(sharded)
        assert_close(np.asarray(maps_4).reshape(maps.shape), maps, 1e-5)
        assert_trees_close(jax.tree.map(lambda leaf: leaf[3], new_4), new, 1e-5)


def test_evaluation_does_not_depend_on_the_batch():
    model, variables, images = small()
    apply = jax.jit(model.apply)
    assert_close(apply(variables, images[:1]), apply(variables, images)[:1], 1e-5)


def test_zero_init_residual_starts_blocks_as_the_skip_connection():
    model, variables, images = small(zero_init_residual=True)
    assert not variables["params"]["layer1_0"]["bn2"]["scale"].any()
    assert variables["params"]["layer1_0"]["bn1"]["scale"].all()
    _, state = jax.jit(lambda v: model.apply(v, images, capture_intermediates=True))(variables)
    block = state["intermediates"]["layer2_0"]
    skip = jax.nn.relu(block["downsample_bn"]["__call__"][0])
    np.testing.assert_array_equal(block["__call__"][0], skip)


def test_initial_kernels_have_torchs_spread():
    kernel = initial("bottleneck")["params"]["layer2_0"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.06)


def test_build_picks_the_cpu_forms_on_a_cpu_unless_told_otherwise():
    assert resnet.build("resnet50").matmul_1x1 and resnet.build("resnet50").cpu_stem
    assert not resnet.build("resnet50", matmul_1x1=False).matmul_1x1
    assert resnet.build("resnet_small", width=16).channels == 128


def test_build_names_what_exists():
    with pytest.raises(UserError, match=r"'resnet51' is not known; choose one of .*resnet50"):
        resnet.build("resnet51")
    with pytest.raises(UserError, match=r"no field depth; fields are .*last_stride"):
        resnet.build("resnet50", depth=3)
