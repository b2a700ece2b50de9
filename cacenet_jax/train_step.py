"""One training step, pure: (state, batch) -> (state, metrics), the same result on any number of devices.

The one exception is the drop connect of a backbone that has it, off by default, which draws device by device.

Legend: B images of the global batch, R images of one device, F embedding size, I training identities.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cacenet_jax import losses
from cacenet_jax.data.augment import Augment, augment
from cacenet_jax.data.batch import Batch
from cacenet_jax.distributed.collectives import transpose_grid
from cacenet_jax.models.cacenet import CACENet, PairGrid
from cacenet_jax.models.heads import Embedded, normalise

# Folded into the key of a run for the masks of dropout, and of a backbone that leaves out blocks (drop connect).
_DROPOUT, _DROP_CONNECT = 2**32 - 1, 2**32 - 2


@struct.dataclass
class TrainState:
    """All that training changes.

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


class LossWeights(NamedTuple):
    """Weights and constants of the loss.

    Attributes:
        margin: triplet margin on distances of normalised embeddings.
        alpha: weight of the target's identity in the mix-up loss (equation 8).
        identity: weight of the identity loss on f(I).
        triplet: weight of the triplet loss on f(I).
        pair_identity: weight of the mix-up identity loss on f(u|v).
        pair_triplet: weight of the triplet loss on pair distances.
        evidence: weight of the list loss on the scores of local evidence.
        label_smoothing: of the identity loss on f(I).
        rectified: whether the triplet losses see embeddings after a ReLU.
    """

    margin: float = 0.5
    alpha: float = 0.9
    identity: float = 1.0
    triplet: float = 1.0
    pair_identity: float = 1.0
    pair_triplet: float = 1.0
    evidence: float = 1.0
    label_smoothing: float = 0.0
    rectified: bool = False


def create_state(
    model: CACENet, optimizer: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, int]
) -> TrainState:
    """Freshly initialised parameters, statistics and optimiser state; image_shape is (height, width)."""
    images = jnp.zeros((2, *image_shape, model.image_channels))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(key)
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def _mean(x: Any, axis_name: str | None) -> Any:
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def _gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def loss_terms(
    individual: Embedded,
    grid: PairGrid | None,
    labels_R: jax.Array,
    index_R: jax.Array,
    weights: LossWeights,
    axis_name: str | None,
    clue_weight: float = 0.0,
) -> dict[str, jax.Array]:
    """The weighted terms of the loss over the global batch, each a scalar equal on every device.

    Args:
        individual: f(I) and logits of this device's images.
        grid: pairs of this device's images and all images; None without the pair stage.
        labels_R: identities of this device's images.
        index_R: their positions in the global batch.
        weights: weights and constants.
        axis_name: device axis, None on one device.
        clue_weight: share of the clue distance in the pair distance, as in the model.
    """

    def over_rows(rows: losses.RowLosses) -> jax.Array:
        total, count = _mean(rows.loss_R.sum(), axis_name), _mean(rows.valid_R.sum(), axis_name)
        return total / jnp.where(count > 0, count, 1)

    seen = jax.nn.relu if weights.rectified else lambda embedding: embedding
    labels_B = _gather(labels_R, axis_name)
    embedding_RF = normalise(seen(individual.embedding))
    distance_RB = losses.euclidean_grid(embedding_RF, _gather(embedding_RF, axis_name))
    triplet = losses.batch_hard_rows(distance_RB, labels_R, labels_B, index_R, weights.margin)
    identity = _mean(losses.cross_entropy(individual.logits, labels_R, weights.label_smoothing).mean(), axis_name)
    terms = {"identity": weights.identity * identity, "triplet": weights.triplet * over_rows(triplet)}
    if grid is not None and grid.evidence is not None:
        score_RB = grid.evidence + transpose_grid(grid.evidence, axis_name)
        evidence = losses.list_rows(score_RB, labels_R, labels_B, index_R)
        terms["evidence"] = weights.evidence * over_rows(evidence)
    elif grid is not None:
        pair_RB = grid.points
        if grid.conditional is not None:
            mixup_R = losses.mixup_rows(grid.conditional.logits, labels_R, labels_B, weights.alpha)
            terms["pair_identity"] = weights.pair_identity * _mean(mixup_R.mean(), axis_name)
            target_RBF = normalise(seen(grid.conditional.embedding))
            pair_RB = losses.euclidean(target_RBF, transpose_grid(target_RBF, axis_name))
            if grid.clues is not None:
                clue_RB = 2 * clue_weight * grid.clues
                pair_RB = losses.safe_sqrt((1 - clue_weight) * pair_RB**2 + clue_RB)
        pair_triplet = losses.batch_hard_rows(pair_RB, labels_R, labels_B, index_R, weights.margin)
        terms["pair_triplet"] = weights.pair_triplet * over_rows(pair_triplet)
    return terms


def make_train_step(
    model: CACENet,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    augmentation: Augment | None,
    key: jax.Array,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The per-device training step, to be compiled by jax.jit or mapped by parallel.DeviceMap.

    Args:
        model: the network, with the same axis_name.
        optimizer: as optim.optimizer builds it.
        weights: weights and constants of the loss.
        augmentation: what happens to an image; None takes `Batch.images` as they are, normalised floats.
        key: seed of augmentation and dropout; step and image position are folded in, so a resumed run draws the same.
        axis_name: device axis for collectives, None on one device.

    Returns:
        A pure function of a state and this device's share of the batch to the new state and scalar metrics: `loss`, each
        weighted term, `accuracy`, `grad_norm` and, with the pair stage, the health of the graph.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        images_RHWC, labels_R = batch
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
            terms = loss_terms(individual, grid, labels_R, index_R, weights, axis_name, model.clue_weight)
            return sum(terms.values()), (terms, individual, grid, updates["batch_stats"])

        (loss, (terms, individual, grid, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        # The loss is averaged over devices inside, the gradients here: right under pmap and shard_map alike.
        grads = _mean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        hits = (individual.logits.argmax(axis=-1) == labels_R).mean(dtype=jnp.float32)
        metrics["accuracy"] = _mean(hits, axis_name)
        if grid is not None:
            health = {name: getattr(grid, name) for name in ("positive_intra", "positive_cross", "degree")}
            metrics |= {name: _mean(value, axis_name) for name, value in health.items() if value is not None}
        params = optax.apply_updates(state.params, updates)
        metrics["param_norm"] = optax.tree.norm(params)  # not finite where the update broke them
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step
