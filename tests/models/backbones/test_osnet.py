"""OSNet against PyTorch, and against itself in its several forms.

tests/golden/osnet.npz holds float64 maps that PyTorch 2.13.0 (CPU) computed for random weights and images, with torchreid's
architecture. The script beside it, make_osnet.py, wrote it and makes the same weights again here, with NumPy alone.
"""

import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import assert_names_are, golden_variables, to_torch

from cacenet_jax.errors import UserError
from cacenet_jax.models import backbones
from cacenet_jax.models.backbones import osnet
from cacenet_jax.pretrained.backbone import load, shapes

GOLDEN_DIR = Path(__file__).parents[2] / "golden"
WEIGHTS_DIR = os.environ.get("CACENET_TORCHREID_WEIGHTS")  # holds the files of make_osnet.PUBLISHED
FORMS = ("matmul_1x1", "cpu_depthwise", "cpu_stem")
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile, not to run


@pytest.fixture(scope="module")
def maker():
    """The script that made the golden file (it imports PyTorch only to write)."""
    spec = importlib.util.spec_from_file_location("make_osnet", GOLDEN_DIR / "make_osnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN_DIR / "osnet.npz")


@pytest.fixture(scope="module")
def small(maker):
    """A network of two blocks, its variables and its images, in any type and form."""

    def make(cpu_forms=False, dtype=jnp.float32, **fields):
        kinds = tuple(tuple("instance_branch" if inside else "batch" for inside in row) for row in maker.TRAIN_INSIDE)
        sizes = {"widths": maker.TRAIN_WIDTHS, "norms": kinds, "instance_stem": True, "dtype": dtype}
        model = backbones.build("osnet_ain_x1_0", **sizes, **dict.fromkeys(FORMS, cpu_forms), **fields)
        variables = golden_variables(maker, model.clone(axis_name=None))
        images = maker.image(maker.TRAIN_SHAPE)
        if not jax.config.jax_enable_x64:
            variables, images = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (variables, images))
        return model, variables, jnp.asarray(images)

    return make


def assert_close(actual, expected, tolerance=1e-10, scale=None):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", osnet.STAGES)
def test_torch_name_is_a_bijection_onto_torchreids_state_dict(name, golden):
    assert_names_are(backbones.build(name), json.loads(str(golden[f"{name}/state"])))


@pytest.mark.parametrize("path", ["layer1_0/conv1/kernel", "conv1/conv/momentum", "fc/0/kernel", "conv2_0/kernel"])
def test_torch_name_rejects_other_paths(path):
    with pytest.raises(ValueError, match="not a path of an OSNet"):
        osnet.OSNet.torch_name(path)


@pytest.mark.parametrize(
    ("name", "fields", "height", "width", "expected"),
    [
        ("osnet_x1_0", {}, 256, 128, (16, 8, 512)),
        ("osnet_x0_75", {}, 128, 64, (8, 4, 384)),
        ("osnet_x0_5", {}, 61, 35, (4, 2, 256)),
        ("osnet_x0_25", {"last_stride": 1}, 256, 128, (32, 16, 128)),
    ],
)
def test_map_shape_is_what_the_module_promises(name, fields, height, width, expected):
    model = backbones.build(name, **fields)
    images = jax.ShapeDtypeStruct((4, height, width, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert maps.shape == (4, *expected)
    assert model.channels == expected[-1]


def test_a_stride_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"'osnet_x0_5': found last_stride=3, expected 1 or 2; change config.model"):
        backbones.build("osnet_x0_5", last_stride=3)


@pytest.mark.parametrize(("name", "cpu_forms"), [(name, False) for name in osnet.STAGES] + [("osnet_x0_25", True)])
def test_maps_in_float32_equal_pytorchs(name, cpu_forms, maker, golden):
    """The forms for CPU and for accelerators both meet PyTorch."""
    model = backbones.build(name, **dict.fromkeys(FORMS, cpu_forms))
    variables = jax.tree.map(np.float32, golden_variables(maker, model))
    keep = lambda module, _: (module.name or "").endswith("_1") and (module.name or "").count("_") == 1
    apply = quick_jit(lambda v, x: model.apply(v, x, capture_intermediates=keep))
    with jax.default_matmul_precision("highest"):
        maps_BHWC, state = apply(variables, jnp.asarray(maker.image(maker.SHAPE), jnp.float32))
    assert maps_BHWC.dtype == jnp.float32
    outputs = {f"conv{i}_1": state["intermediates"][f"conv{i}_1"]["__call__"][0] for i in (2, 3, 4)}
    for layer, out_BHWC in (outputs | {"conv5": maps_BHWC}).items():
        assert_close(np.asarray(out_BHWC)[..., :: maker.CHANNEL_STEP], golden[f"{name}/{layer}"], 1e-5)
        assert_close(np.asarray(out_BHWC, np.float64).sum(axis=-1), golden[f"{name}/{layer}/sum"], 1e-5)


@pytest.mark.parametrize("cpu_forms", [False, True])
def test_training_at_an_odd_size_equals_pytorchs(cpu_forms, maker, golden, small):
    """Maps, running statistics and gradients in float64; the forms for CPU change none of them."""
    batch, step = maker.TRAIN_SHAPE[0], maker.CHANNEL_STEP
    with jax.enable_x64(True):
        model, variables, images = small(cpu_forms, jnp.float64)

        def loss(params):
            maps, new = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (maker.loss_weights(maps.size) * maps.ravel()).mean(), (maps, new["batch_stats"])

        grads, (maps_BHWC, stats) = quick_jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert_close(np.asarray(maps_BHWC)[..., ::step], golden["train/conv5"])
    assert_close(np.asarray(maps_BHWC).sum(axis=-1), golden["train/conv5/sum"])
    old = traverse_util.flatten_dict(variables["batch_stats"])
    positions = {"conv2": 12 * 7, "pool2": 12 * 7, "conv3": 6 * 3, "pool3": 6 * 3, "conv5": 3 * 1}
    for path, value in traverse_util.flatten_dict(jax.tree.map(np.asarray, stats)).items():
        if path[-1] == "var":  # PyTorch folds in n / (n - 1) times the variance of the n values of a channel
            n = batch * positions[path[0][:5]]
            value = 0.9 * old[path] + (value - 0.9 * old[path]) * n / (n - 1)
        assert_close(value[::step], golden[f"train/{model.torch_name(path)}"])
    expected = {key.split("/")[-1]: golden[key] for key in golden.files if key.startswith("train/gradient/")}
    gradients = {
        model.torch_name(path): to_torch(path, value).ravel()[:: maker.GRADIENT_STEP]
        for path, value in traverse_util.flatten_dict(grads).items()
    }
    assert gradients.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        # What the stem's bias adds to positive inputs of a batch norm has no gradient.
        assert np.abs(value).max() > 1e-4 * largest or key == "conv1.bn.bias"
        assert_close(gradients[key], value, scale=max(np.abs(value).max(), 1e-3 * largest))


def test_bfloat16_computes_in_bfloat16_and_stores_float32(small):
    model, variables, images = small(cpu_forms=True, dtype=jnp.bfloat16)
    apply = quick_jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    maps, stats = apply(images)
    assert maps.dtype == jnp.bfloat16 and maps.min() >= 0 and np.isfinite(maps.astype(jnp.float32)).all()
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_synchronised_batch_norm_sees_the_global_batch(small):
    model, variables, images = small()
    synchronised, _, _ = small(axis_name="devices")
    maps = quick_jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])(images)
    apply = lambda x: synchronised.apply(variables, x[None], train=True, mutable=["batch_stats"])[0][0]
    sharded = quick_jit(jax.vmap(apply, axis_name="devices"))(images)
    assert_close(np.asarray(sharded), np.asarray(maps), 1e-5)


def test_gates_differ_between_images_and_streams(small):
    """One layer pair serves the four streams; each stream, image and channel has a weight in (0, 1)."""
    model, variables, images = small()
    keep = lambda module, _: isinstance(module, osnet.Gate)
    _, state = quick_jit(lambda v: model.apply(v, images, capture_intermediates=keep))(variables)
    gates_SBE = np.asarray(state["intermediates"]["conv2_0"]["gate"]["__call__"][0])
    assert gates_SBE.shape == (4, 3, 32) and gates_SBE.min() > 0 and gates_SBE.max() < 1
    assert np.ptp(gates_SBE, axis=0).max() > 0.01 and np.ptp(gates_SBE, axis=1).max() > 0.01
    assert variables["params"]["conv2_0"]["gate"]["fc1"]["kernel"].shape == (32, 2)


def test_a_smaller_stride_keeps_the_parameters(small):
    model, variables, images = small()
    finer, _, _ = small(last_stride=1)
    like = jax.eval_shape(finer.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, like)
    maps, fine_maps = (jax.eval_shape(m.apply, variables, images).shape for m in (model, finer))
    assert (maps, fine_maps) == ((3, 3, 1, 192), (3, 6, 3, 192))


@pytest.mark.skipif(not WEIGHTS_DIR, reason="CACENET_TORCHREID_WEIGHTS names no folder with osnet_x0_25_*.pth")
@pytest.mark.parametrize("file", ["osnet_x0_25_market1501.pth", "osnet_x0_25_msmt17.pth"])
def test_published_weights_give_pytorchs_maps(file, maker):
    golden = np.load(GOLDEN_DIR / "osnet_published.npz")
    path = Path(WEIGHTS_DIR) / file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == str(golden[f"{file}/sha256"])
    model = backbones.build("osnet_x0_25", **dict.fromkeys(FORMS, False))
    weights = load(str(path), model, shapes(model, 64, 32), "osnet_x0_25")
    layers = {name.split(".")[0] for name in weights.ignored if not name.endswith("num_batches_tracked")}
    assert layers == {"fc", "classifier"}
    with jax.default_matmul_precision("highest"):
        images = jnp.asarray(maker.image(maker.PUBLISHED_SHAPE), jnp.float32)
        maps = quick_jit(model.apply)(weights.variables, images)
    assert_close(np.asarray(maps), golden[file], 1e-5)
