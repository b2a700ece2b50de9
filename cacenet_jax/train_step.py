"""Training step: a pure function (state, batch) -> (state, metrics) with the same result on any number of devices.

The only exception is drop connect, which is off by default and draws separate masks on each device.

Legend: B images of the global batch, R images per device, F embedding size, I training identities.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict

from cacenet_jax import losses
from cacenet_jax.data.augment import Augment, augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.collectives import all_gather, pmean
from cacenet_jax.losses import LossWeights
from cacenet_jax.models.cacenet import INDIVIDUAL_PARAMETERS, CACENet
from cacenet_jax.models.heads import Embedded, normalise, spread

# Folded into the random key to derive separate keys for dropout and drop connect (skipped backbone blocks).
_DROPOUT, _DROP_CONNECT = 2**32 - 1, 2**32 - 2


@struct.dataclass
class TrainState:
    """Training state.

    Attributes:
        step: number of completed steps, an integer scalar. Typed as Any because the same class
            also holds shapes and host arrays.
        params: parameters.
        batch_stats: running statistics of the batch norm layers.
        opt_state: optimiser state.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(
    model: CACENet, optimizer: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, int]
) -> TrainState:
    """Initialise parameters, running statistics and optimiser state; `image_shape` is (height, width)."""
    images = jnp.zeros((2, *image_shape, model.image_channels))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(key)
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def loss_terms(
    net: CACENet,
    individual: Embedded,
    grid: Any,
    labels_R: jax.Array,
    index_R: jax.Array,
    weights: LossWeights,
) -> dict[str, jax.Array]:
    """Compute the weighted loss terms over the global batch, as scalars equal on all devices.

    Args:
        net: network; only its pair stage, `relu` and `axis_name` are used.
        individual: f(I) and logits of this device's images.
        grid: pair-stage output for the pairs of this device's images with all images.
        labels_R: identities of this device's images.
        index_R: positions of these images in the global batch.
        weights: weights and constants of the loss.
    """
    axis_name = net.axis_name

    def mean(rows: losses.RowLosses) -> jax.Array:
        total, count = pmean(rows.loss_R.sum(), axis_name), pmean(rows.valid_R.sum(), axis_name)
        return total / jnp.where(count > 0, count, 1)

    labels = losses.GridLabels(labels_R, all_gather(labels_R, axis_name), index_R)
    embedding_RF = normalise(jax.nn.relu(individual.embedding) if net.relu else individual.embedding)
    distance_RB = losses.euclidean_grid(embedding_RF, all_gather(embedding_RF, axis_name))
    rows = {
        "identity": losses.every_row(losses.cross_entropy(individual.logits, labels_R, weights.label_smoothing)),
        "triplet": losses.batch_hard_rows(distance_RB, *labels, weights.margin),
    }
    if net.pair_stage is not None:
        rows |= net.pair_stage.losses(grid, labels, weights)
    return {name: getattr(weights, name, 1.0) * mean(row) for name, row in rows.items()}


def pair_weights(params: Any) -> dict[str, Any]:
    """Return the weights of the pair stage by name, without biases and scalars, which may be zero."""
    stage = {name: tree for name, tree in params.items() if name not in INDIVIDUAL_PARAMETERS}
    flat = flatten_dict(stage, sep="/")
    return {name: x for name, x in flat.items() if x.ndim and not name.endswith("bias")}


def count_dead(before: Any, after: Any, grads: Any) -> jax.Array:
    """Count the weights of the pair stage that are all zero after a step.

    A weight that starts at zero and receives a gradient is not dead.

    Args:
        before: parameters before the step.
        after: parameters after the step.
        grads: gradients of the step.
    """
    trees = [pair_weights(tree) for tree in (before, after, grads)]
    dead = [
        ~(new != 0).any() & ((old != 0).any() | ~(grad != 0).any())
        for old, new, grad in zip(*(tree.values() for tree in trees), strict=True)
    ]
    return jnp.asarray(sum(x.astype(jnp.float32) for x in dead), jnp.float32)


def make_train_step(
    model: CACENet,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    augmentation: Augment | None,
    key: jax.Array,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Build the per-device training step, to be compiled by jax.jit or mapped by `distributed.device_map.DeviceMap`.

    Args:
        model: network with the same `axis_name`.
        optimizer: optimiser, as built by `optim.optimizer`.
        weights: weights and constants of the loss.
        augmentation: image augmentation; None if `Batch.images` are already normalised floats.
        key: random key for augmentation and dropout. Steps and image positions are folded in, so a resumed run draws
            the same numbers.
        axis_name: device axis for collectives, None on one device.

    Returns:
        Pure function from a state and this device's share of the batch to the new state and scalar metrics: `loss`,
        each weighted loss term by name, `accuracy`, `grad_norm`, `param_norm`, `embedding_spread` (see `heads.spread`)
        and, with a pair stage, its diagnostics and `dead_weights` (see `count_dead`).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images_RHWC, labels_R = (jnp.asarray(x) for x in batch)
        count = labels_R.shape[0]
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
        index_R = first + jnp.arange(count)
        if augmentation is not None:
            images_RHWC = augment(jax.random.fold_in(key, state.step), index_R, images_RHWC, augmentation)

        # Augmentation never folds in _DROPOUT, so the two random streams are separate.
        rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), state.step)} if model.dropout else {}
        # The key differs between devices, because each device draws masks for its own images.
        drop_connect = jax.random.fold_in(jax.random.fold_in(key, _DROP_CONNECT), state.step)
        rngs["drop_connect"] = jax.random.fold_in(drop_connect, first)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            (individual, grid), updates = model.apply(
                variables, images_RHWC, train=True, mutable=["batch_stats"], rngs=rngs
            )
            terms = loss_terms(model, individual, grid, labels_R, index_R, weights)
            return jnp.asarray(sum(terms.values())), (terms, individual, grid, updates["batch_stats"])

        (loss, (terms, individual, grid, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        # `loss_fn` averages the loss over devices, and the gradients are averaged here. This is correct under both
        # pmap and shard_map.
        grads = pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        hits = (individual.logits.argmax(axis=-1) == labels_R).mean(dtype=jnp.float32)
        metrics["accuracy"] = pmean(hits, axis_name)
        if model.pair_stage is not None:
            metrics |= pmean(dict(model.pair_stage.diagnostics(grid)), axis_name)
        metrics["embedding_spread"] = spread(
            jax.nn.relu(individual.embedding) if model.relu else individual.embedding, axis_name
        )
        params = optax.apply_updates(state.params, updates)
        metrics["param_norm"] = optax.tree.norm(params)  # not finite if the update broke the parameters
        if model.pair_stage is not None:
            metrics["dead_weights"] = count_dead(state.params, params, grads)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step
