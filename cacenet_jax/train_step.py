"""One training step, pure: (state, batch) -> (state, metrics), the same result on any number of devices.

The one exception is the drop connect of a backbone that has it, off by default, which draws device by device.

Legend: B images of the global batch, R images of one device, F embedding size, I training identities.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cacenet_jax import losses
from cacenet_jax.data.augment import Augment, augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.collectives import all_gather, pmean
from cacenet_jax.losses import LossWeights
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.heads import Embedded, normalise

# Folded into the key of a run for the masks of dropout, and of a backbone that leaves out blocks (drop connect).
_DROPOUT, _DROP_CONNECT = 2**32 - 1, 2**32 - 2


@struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: steps done, an integer scalar (any leaf type: trees of shapes and of host arrays have this form too).
        params: parameters.
        batch_stats: running statistics of the batch norms.
        opt_state: the optimiser's state.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(
    model: CACENet, optimizer: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, int]
) -> TrainState:
    """Freshly initialised parameters, statistics and optimiser state; image_shape is (height, width)."""
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
    """Compute the weighted terms of the loss over the global batch, each a scalar equal on every device.

    Args:
        net: the network, of which the pair stage, the ReLU in front of classifiers and the device axis are read.
        individual: f(I) and logits of this device's images.
        grid: pairs of this device's images and all images, from the pair stage.
        labels_R: identities of this device's images.
        index_R: their positions in the global batch.
        weights: weights and constants.
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


def make_train_step(
    model: CACENet,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    augmentation: Augment | None,
    key: jax.Array,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The per-device training step, to be compiled by jax.jit or mapped by distributed.device_map.DeviceMap.

    Args:
        model: the network, with the same axis_name.
        optimizer: as optim.optimizer builds it.
        weights: weights and constants of the loss.
        augmentation: what happens to an image; None takes `Batch.images` as they are, normalised floats.
        key: seed of augmentation and dropout; step and image position are folded in, so a resumed run draws the same.
        axis_name: device axis for collectives, None on one device.

    Returns:
        A pure function of a state and this device's share of the batch to the new state and scalar metrics: `loss`, each
        weighted term of the loss under its name, `accuracy`, `grad_norm`, `param_norm` and the pair stage's diagnostics.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images_RHWC, labels_R = (jnp.asarray(x) for x in batch)
        count = labels_R.shape[0]
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
        index_R = first + jnp.arange(count)
        if augmentation is not None:
            images_RHWC = augment(jax.random.fold_in(key, state.step), index_R, images_RHWC, augmentation)

        # A stream of its own: no step and no image of the augmentation has this number.
        rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), state.step)} if model.dropout else {}
        # Another on each device, which draws for its own images.
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
        # The loss is averaged over devices inside, the gradients here: right under pmap and shard_map alike.
        grads = pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        hits = (individual.logits.argmax(axis=-1) == labels_R).mean(dtype=jnp.float32)
        metrics["accuracy"] = pmean(hits, axis_name)
        if model.pair_stage is not None:
            metrics |= pmean(dict(model.pair_stage.diagnostics(grid)), axis_name)
        params = optax.apply_updates(state.params, updates)
        metrics["param_norm"] = optax.tree.norm(params)  # not finite where the update broke them
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step
