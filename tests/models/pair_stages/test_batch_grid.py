"""The pair stage of a whole batch against the literal graphs of every pair: values, gradients, blocks, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affinity, full_graph, max_relative, pair_maps

from cacenet_jax.errors import UserError
from cacenet_jax.models.attention import correspondence
from cacenet_jax.models.graph import laplacian_conv
from cacenet_jax.models.pair_stages.conditional.batch_grid import coefficients, encoded_grid
from cacenet_jax.models.pair_stages.conditional.memory_plan import Plan, make_plan

PLANS = {
    "as on a GPU": Plan(None, 6, True, False, 6, True),
    "as on a GPU, in blocks": Plan(None, 2, False, False, 3, True),
    "at once": Plan(None, 6, True, False, 6),
    "mirrored": Plan(None, 2, True, True, 3),
    "panels, kept": Plan(None, 3, True, False, 6),
    "panels, computed again": Plan(None, 2, False, False, 2),
    "row by row": Plan(None, 1, False, False, 1),
}
CASES = ("mixed", "isolated", "all isolated", "identical", "one node", "positive", "cross only")


def batch(case, images=6, nodes=5, channels=3):
    """Maps of a batch and w, w', like oracles.pair_case."""
    rng = np.random.default_rng(0)
    nodes = 1 if case == "one node" else nodes
    maps_BND = rng.standard_normal((images, nodes, channels))
    weights = [rng.standard_normal(channels) for _ in range(2)]
    if case == "isolated":
        maps_BND[1, 2] = maps_BND[3, 0] = 0
    elif case == "identical":
        maps_BND[2:4] = maps_BND[0]
    elif case == "positive":
        maps_BND, weights = abs(maps_BND), [np.ones(channels)] * 2
    elif case == "all isolated":
        maps_BND, weights = abs(maps_BND), [-abs(w) for w in weights]
    elif case == "cross only":
        maps_BND, weights = abs(maps_BND), [-abs(weights[0]), abs(weights[1])]
    theta = rng.standard_normal((channels, 4))
    return tuple(jnp.asarray(x) for x in (maps_BND, *weights, theta))


def exact(how, maps, intra, cross, theta):
    found = coefficients(how, maps, intra, cross)
    return encoded_grid(how, maps, found, lambda own, near: (own - near) @ theta)


def literal(maps, intra, cross, theta):
    """Every pair's full graph and full conditional maps."""
    pair = lambda u, v: laplacian_conv(correspondence(u, v, intra, cross), u, v, theta)[0].mean(axis=0)
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(maps, maps)


@functools.cache
def compiled_form(how):
    """Value and gradients of the grid cut up in a way, or with None of the literal form: one program for all cases."""
    form = literal if how is None else functools.partial(exact, how)

    def both(weigh, *inputs):
        value, back = jax.vjp(form, *inputs)
        return [value, *back(weigh.astype(value.dtype))]

    return jax.jit(both)


def with_gradients(how, inputs):
    weigh = np.random.default_rng(1).standard_normal((*inputs[0].shape[:1] * 2, inputs[3].shape[1]))
    return compiled_form(how)(weigh, *inputs)


@pytest.mark.parametrize("how", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("case", CASES)
def test_grid_has_the_values_and_gradients_of_the_literal_form(x64, case, how):
    inputs = batch(case)
    for have, want in zip(with_gradients(how, inputs), with_gradients(None, inputs), strict=True):
        assert np.isfinite(have).all()
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-11 * max(1, np.abs(want).max()))


def test_grid_equals_the_loop_over_pairs_and_nodes(x64):
    maps, intra, cross, theta = batch("isolated")
    found, *_ = with_gradients(PLANS["mirrored"], (maps, intra, cross, theta))
    maps = np.asarray(maps)
    for u, target in enumerate(maps):
        for v, context in enumerate(maps):
            expected = pair_maps(target, context, intra, cross, theta)[0].mean(axis=0)
            np.testing.assert_allclose(found[u, v], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", PLANS.values(), ids=PLANS)
def test_health_of_the_graph_is_that_of_the_loop_and_passes_no_gradient(x64, how):
    maps, intra, cross, _ = batch("isolated")
    found = jax.jit(coefficients, static_argnums=0)(how, maps, intra, cross)
    arrays = np.asarray(maps)
    positive = np.mean([affinity(u, v, cross) > 0 for u in arrays for v in arrays])
    own = np.mean([affinity(u, u, intra) > 0 for u in arrays])
    degree = np.mean([full_graph(u, v, intra, cross).sum(axis=1)[: len(u)] for u in arrays for v in arrays])
    have = found.positive_intra, found.positive_cross, found.degree
    np.testing.assert_allclose(have, [own, positive, degree], rtol=1e-6)

    def health(*inputs):
        found = coefficients(how, *inputs)
        return found.positive_intra + found.positive_cross + found.degree

    assert not any(np.any(x) for x in jax.jit(jax.grad(health, (0, 1, 2)))(maps, intra, cross))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e8])
def test_float32_has_no_nan_at_any_scale(scale):
    inputs = [x.astype(jnp.float32) for x in batch("isolated")]
    inputs[0] = inputs[0] * scale
    assert all(np.isfinite(x).all() for x in with_gradients(PLANS["mirrored"], inputs))


def test_bfloat16_maps_give_float32_results_near_the_exact_ones():
    maps, *rest = (x.astype(jnp.float32) for x in batch("positive", nodes=12, channels=64))
    wide = with_gradients(PLANS["at once"], (maps, *rest))
    rounded = with_gradients(PLANS["at once"], (maps.astype(jnp.bfloat16), *rest))
    assert rounded[0].dtype == jnp.float32 and rounded[1].dtype == jnp.bfloat16
    for have, want in zip(rounded, wide, strict=True):
        assert max_relative(have.astype(jnp.float32), want) < 0.05


def test_plan_keeps_within_the_budget_and_says_what_it_needs():
    everything = make_plan(16, 16, 192, 2048, 1024.0)
    assert everything.keep and everything.encode == 16
    tight = make_plan(16, 16, 192, 2048, 40.0)
    assert not tight.keep and tight.panel < 16
    assert make_plan(2, 16, 192, 2048, 1024.0, axis_name="data").mirror is False  # the other order is on another device
    gpu = make_plan(16, 16, 192, 2048, 1024.0, 2, backend="gpu")
    assert gpu == Plan(None, 16, True, False, 16, True)  # one panel: large products


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_budget_that_is_too_small_is_refused_and_the_advice_works(share):
    with pytest.raises(
        UserError, match=r"pair_memory_mib: found 16, expected at least .* for 256 x 256 pairs of 192"
    ) as error:
        make_plan(256, 256, 192, 2048, 16.0, share=share)
    advised = float(re.search(r"at least (\d+)", str(error.value)).group(1))
    make_plan(256, 256, 192, 2048, advised, share=share)
    with pytest.raises(UserError):
        make_plan(256, 256, 192, 2048, advised - 1, share=share)


def compiled(size, budget_mib, nodes=48, channels=256, embed=64, backend=None):
    """The grid, forward and backward, as XLA would run it; nothing is run."""
    shapes = [(size, nodes, channels), (channels,), (channels,), (channels, embed), (size, size, embed)]
    how = make_plan(size, size, nodes, channels, budget_mib, backend=backend)

    def both(*inputs):
        value, back = jax.vjp(lambda *x: exact(how, *x), *inputs[:-1])
        return value, back(inputs[-1])

    return jax.jit(both).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("size", "nodes", "channels", "budget"),
    [(16, 48, 256, 4.0), (64, 48, 256, 48.0), (112, 32, 512, 64.0), (256, 48, 256, 192.0), (256, 12, 512, 64.0)],
)
def test_temporaries_stay_within_the_budget_from_batch_16_to_256(size, nodes, channels, budget, backend):
    """A copy of the maps and their gradients through keys, own and given weights aside; so cut that it is not trivial."""
    found = compiled(size, budget, nodes, channels, backend=backend).memory_analysis().temp_size_in_bytes
    assert found <= budget * 2**20 + 4 * (4 * size * nodes * channels)
    at_once = Plan(None, size, True, False, size)
    assert make_plan(size, size, nodes, channels, budget, backend="gpu") != at_once._replace(fused=True)


def arrays_of(text):
    """Elements and shape of every array that a compiled program writes."""
    shapes = re.findall(r"= \(?(?:f32|bf16|pred|s32|u32|f16)\[([\d,]+)\]", text)
    return [(int(np.prod([int(n) for n in shape.split(",")])), shape) for shape in shapes]


def test_compiled_blocks_hold_no_array_of_the_whole_grid():
    size, nodes, channels = 64, 48, 256
    text = compiled(size, 24.0, nodes, channels).as_text()
    largest = max(arrays_of(text))
    assert largest[0] < size**2 * nodes * nodes / 2, largest  # B^2 N^2, and so B^2 N D
    assert not [shape for count, shape in arrays_of(text) if count == size**2 * channels and str(channels) in shape]


@pytest.mark.parametrize(("panel", "keep", "encode"), [(2, True, 2), (1, False, 1)])
@pytest.mark.parametrize("devices", [2, 4])
def test_rows_on_several_devices_give_the_grid_of_one(x64, devices, panel, keep, encode):
    """The gradient of the maps is complete on the device that owns them, without a sum over devices."""
    inputs = batch("isolated", images=8)
    expected = with_gradients(Plan(None, 8, True, False, 8), inputs)
    weigh = np.random.default_rng(1).standard_normal(expected[0].shape)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split, same = jax.P("data"), jax.P()

    def on_device(maps, intra, cross, theta, weigh):
        how = Plan("data", min(panel, maps.shape[0]), keep, False, min(encode, maps.shape[0]))
        value, back = jax.vjp(lambda *y: exact(how, *y), maps, intra, cross, theta)
        d_maps, *d_weights = back(weigh)
        return value, d_maps, *(jax.lax.psum(d, "data") for d in d_weights)

    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, same, same, same, split),
        out_specs=(split, split, same, same, same), check_vma=False,
    )  # fmt: skip
    for have, want in zip(jax.jit(mapped)(*inputs, jnp.asarray(weigh)), expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-11 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_grid_of_the_papers_size_lowers_for_accelerators_as_they_run_it(platform):
    how = make_plan(16, 16, 192, 2048, 1024.0, 2, backend="gpu")

    def both(cotangent, *inputs):
        value, back = jax.vjp(lambda *x: exact(how, *x), *inputs)
        return value, *back(cotangent.astype(value.dtype))

    shapes = [(16, 16, 768), (16, 192, 2048), (2048,), (2048,), (2048, 768)]
    types = [jnp.float32, jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    text = jax.export.export(jax.jit(both), platforms=(platform,))(*arguments).mlir_module()
    grams = re.findall(r"dot_general.*tensor<3072x\d+xbf16>, tensor<\d+x\d+xbf16>\) -> tensor<3072x\d+xf32>", text)
    assert len(grams) == 2  # forward and backward one product each, bfloat16 summed in float32
