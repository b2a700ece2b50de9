"""Parts of a training step as separate compiled functions, described in train_step.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import device, problem
from cacenet_jax.data.augment import augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.heads import Embedded
from cacenet_jax.models.pair_stages import Individual
from cacenet_jax.models.pixels import normalise_images
from cacenet_jax.train_step import TrainState, loss_terms


class Part(NamedTuple):
    """A function ready to be timed.

    Attributes:
        run: calls it once, on arguments that lie on the device.
        flops: operations of one call as XLA counts them, None where it does not.
        memory: bytes of its arguments, results and temporaries, None where XLA does not say.
    """

    run: Callable[[], Any]
    flops: float | None
    memory: int | None


def _part(function: Callable[..., Any], *args: Any, carry: int = 0) -> Part:
    """Compiles; the first `carry` arguments are donated and replaced by the first results, call after call."""
    compiled = device.compiled(function, *args, donate=tuple(range(carry)))
    held = [*jax.tree.map(jnp.copy, args[:carry]), *args[carry:]]

    def run() -> Any:
        results = compiled(*held)
        if carry:
            held[:carry], results = results[:carry], results[carry:]
        return results

    return Part(run, device.cost_flops(compiled), device.memory_bytes(compiled))


def _grid(net: CACENet, maps_BHWD: jax.Array) -> Any:
    """The pair stage's grid of maps, in training."""
    branch = Individual(net.individual_head, None)
    nodes_BND = maps_BHWD.reshape(len(maps_BHWD), -1, maps_BHWD.shape[-1])
    return net.pair_stage.grid(nodes_BND, None, branch, train=True)


def pair_stage(net: CACENet, labels_B: jax.Array) -> Callable[..., Any]:
    """(its parameters, maps, other parameters, statistics) to the conditional losses and both gradients."""

    def loss(own: Any, maps_BHWD: jax.Array, others: Any, stats: Any) -> jax.Array:
        variables = {"params": {**others, **own}, "batch_stats": stats}
        grid, _ = net.apply(variables, maps_BHWD, method=_grid, mutable=["batch_stats"])
        count = labels_B.shape[0]
        nobody = Embedded(jnp.ones((count, 1)), jnp.zeros((count, net.num_identities)))  # its losses are dropped
        terms = loss_terms(net, nobody, grid, labels_B, jnp.arange(count), problem.WEIGHTS)
        return terms["pair_identity"] + terms["pair_triplet"]

    return jax.value_and_grad(loss, (0, 1))


def individual(net: CACENet, labels_B: jax.Array) -> Callable[..., Any]:
    """(its parameters, maps, other parameters, statistics) to the individual losses and both gradients."""
    baseline = net.clone(pair_stage=None)

    def loss(own: Any, maps_BHWD: jax.Array, others: Any, stats: Any) -> jax.Array:
        variables = {"params": {**others, **own}, "batch_stats": stats}
        embedded, _ = net.apply(variables, maps_BHWD, train=True, method="individual", mutable=["batch_stats"])
        terms = loss_terms(baseline, embedded, None, labels_B, jnp.arange(labels_B.shape[0]), problem.WEIGHTS)
        return sum(terms.values())

    return jax.value_and_grad(loss, (0, 1))


def backbone(net: CACENet) -> Callable[..., Any]:
    """(its parameters, other parameters, statistics, images, gradient of the maps) to maps, gradient, new statistics."""

    def both(own: Any, others: Any, stats: Any, images_BHWC: jax.Array, cotangent_BHWD: jax.Array) -> Any:
        def run(own: Any) -> Any:
            variables = {"params": {**others, **own}, "batch_stats": stats}
            return net.apply(variables, images_BHWC, train=True, method="maps", mutable=["batch_stats"])

        maps_BHWD, pull, updates = jax.vjp(run, own, has_aux=True)
        return maps_BHWD, pull(cotangent_BHWD), updates

    return both


def gram(nodes_LD: jax.Array, cotangent_LL: jax.Array) -> Any:
    """The bare Gram product X X^T and both gradients."""
    out_LL, pull = jax.vjp(lambda left, right: left @ right.T, nodes_LD, nodes_LD)
    return out_LL, pull(cotangent_LL)


def optimise(params: Any, opt_state: Any, grads: Any) -> Any:
    """The update, and the two norms that the metrics report."""
    updates, opt_state = problem.optimizer().update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, optax.tree.norm(grads), optax.tree.norm(params)


def on_device(batch: Batch) -> Batch:
    """Normalised images and labels on the device."""
    return Batch(jax.jit(normalise_images)(batch.images), jnp.asarray(batch.labels))


def bare_step(size: problem.Size, state: TrainState, batch: Batch, pairs: bool = True) -> Part:
    """The step on images of the device, without augmentation; without `pairs`, the individual baseline's."""
    net = problem.network(size, pairs=pairs)
    if not pairs:
        own = ("backbone", "individual_head")
        params, stats = ({name: tree[name] for name in own} for tree in (state.params, state.batch_stats))
        state = TrainState(state.step, params, stats, problem.optimizer().init(params))
    return _part(problem.step_of(net, None), state, on_device(batch), carry=1)


def _num_nodes(net: CACENet, size: problem.Size) -> int:
    """N, positions of a map."""
    images = jax.ShapeDtypeStruct((1, size.height, size.width, 3), jnp.float32)
    run = lambda x: net.backbone.init_with_output(jax.random.key(0), x, train=False)[0]
    _, height, width, _ = jax.eval_shape(run, images).shape
    return height * width


def bare_gram(size: problem.Size) -> Part:
    """The Gram product of random maps of the network's size, half of them zero as after a ReLU."""
    net = problem.network(size)
    shape = (size.batch * _num_nodes(net, size), net.backbone.channels)
    nodes_LD = jax.nn.relu(jax.random.normal(jax.random.key(2), shape, net.dtype))
    return _part(gram, nodes_LD, jax.random.normal(jax.random.key(3), (shape[0],) * 2, net.dtype))


def parts(size: problem.Size, state: TrainState, batch: Batch) -> dict[str, Part]:
    """Every part of the step on its own, compiled."""
    net, resident = problem.network(size), on_device(batch)
    params, stats, labels_B = state.params, state.batch_stats, resident.labels
    run_maps = lambda params, stats, images: net.apply(
        {"params": params, "batch_stats": stats}, images, train=True, method="maps", mutable=["batch_stats"]
    )[0]
    maps_BHWD = jax.jit(run_maps)(params, stats, resident.images)
    cotangent_BHWD = jax.random.normal(jax.random.key(3), maps_BHWD.shape, maps_BHWD.dtype)
    trunk = {"backbone": params["backbone"]}
    own = {"individual_head": params["individual_head"]}
    pair = {name: value for name, value in params.items() if name not in (*trunk, *own)}
    key, index_B = jax.random.key(1), jnp.arange(size.batch)
    draw = lambda step, pixels: augment(jax.random.fold_in(key, step), index_B, pixels, problem.AUGMENT)
    return {
        "backbone": _part(backbone(net), trunk, {**own, **pair}, stats, resident.images, cotangent_BHWD),
        "pair stage": _part(pair_stage(net, labels_B), pair, maps_BHWD, own, stats),
        "individual": _part(individual(net, labels_B), own, maps_BHWD, pair, stats),
        "optimiser": _part(optimise, params, state.opt_state, jax.tree.map(lambda x: 1e-3 * x, params), carry=2),
        "augmentation": _part(draw, jnp.zeros((), jnp.int32), jnp.asarray(batch.images)),
    }


def analytic_flops(size: problem.Size) -> dict[str, float]:
    """Operations of products and convolutions, forward and backward, by part."""
    net = problem.network(size)
    images = jax.ShapeDtypeStruct((1, size.height, size.width, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    forward = lambda variables, x: net.apply(variables, x, train=False, method="maps")
    nodes, channels = size.batch * _num_nodes(net, size), net.backbone.channels
    # The gradient to the images is not needed; a padded stem (a fourth colour, on CPUs) is not counted as work.
    stem = 2 * -(-size.height // 2) * -(-size.width // 2) * 49 * net.backbone.width
    traced = device.matrix_flops(forward, variables, images) - stem * (4 if net.backbone.cpu_stem else 3)
    dense = 2 * channels * size.embed_dim + 2 * size.embed_dim * size.identities
    product = 3 * 2.0 * nodes**2 * channels  # the pair stage needs two of the three: its cross blocks are symmetric
    return {
        "backbone": size.batch * (3.0 * traced + 2 * 3 * stem),
        "pair stage": product * 2 / 3 + 3.0 * size.batch**2 * (2 * channels**2 + dense),
        "individual": 3.0 * size.batch * dense,
        "bare Gram": product,
    }
