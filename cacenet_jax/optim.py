"""Optimiser and learning rate (paper section 4.2)."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import optax

from cacenet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Optimiser and learning rate; the defaults are the paper's.

    Attributes:
        name: "sgd" or "adamw".
        learning_rate: peak learning rate for a batch of `reference_batch` images.
        reference_batch: batch size that `learning_rate` refers to.
        momentum: SGD momentum.
        weight_decay: L2 penalty for SGD, decoupled weight decay for AdamW.
        warmup_epochs: epochs of linear warm-up from 0.
        clip_norm: maximum global gradient norm, 0 to disable clipping.
        attention_scale: learning-rate multiplier for the attention parameters w and w'.
    """

    name: str = "sgd"
    learning_rate: float = 6.25e-3
    reference_batch: int = 16
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 5.0
    clip_norm: float = 0.0
    attention_scale: float = 1.0


def schedule(settings: Settings, batch_size: int, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning-rate schedule: linear warm-up from 0 to the peak, then cosine decay to 0 at the last epoch.

    Args:
        settings: peak learning rate and warm-up.
        batch_size: global batch size; the peak scales linearly with it.
        epochs: number of training epochs.
        steps_per_epoch: number of steps per epoch.

    Returns:
        Function from step to learning rate.
    """
    peak = settings.learning_rate * batch_size / settings.reference_batch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    fall = optax.cosine_decay_schedule(peak, max(total - warmup, 1))
    return optax.join_schedules([rise, fall], [warmup])


def optimizer(
    settings: Settings,
    rate: optax.Schedule,
    *,
    kept: Collection[str] = (),
    attention: Collection[str] = (),
) -> optax.GradientTransformation:
    """Build SGD with momentum and L2 weight decay as in the paper, or AdamW for training from scratch.

    Weight decay applies to all parameters except those of the attention, because the normalised graph is invariant to
    their scale. The attention parameters use `attention_scale` times the learning rate.

    Args:
        settings: optimiser, weight decay and clipping.
        rate: learning-rate schedule, see `schedule`.
        kept: top-level names of frozen parameters, which have no optimiser state.
        attention: names of the attention parameters (`PairStage.attention_parameters`).

    Raises:
        UserError: the optimiser is unknown.
    """

    def is_attention(path: tuple[Any, ...]) -> bool:
        return any(getattr(key, "key", None) in attention for key in path)

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: not is_attention(path), params)

    decay = optax.add_decayed_weights(settings.weight_decay, mask=decayed)
    if settings.name == "sgd":
        parts = [decay, optax.trace(settings.momentum)]
    elif settings.name == "adamw":
        parts = [optax.scale_by_adam(), decay]
    else:
        raise UserError(f"config.optim.name: found {settings.name!r}, expected 'sgd' or 'adamw'")
    if settings.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))

    def scale_attention(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x * settings.attention_scale if is_attention(path) else x, updates
        )

    scaling = optax.stateless(lambda updates, params: scale_attention(updates))
    chain = [*parts, scaling, optax.scale_by_learning_rate(rate)]
    if not kept:
        return optax.chain(*chain)
    # Frozen parameters get no state, because AdamW's moments would take twice the backbone's size in memory and on
    # disk.
    labels = lambda params: {name: "kept" if name in kept else "trained" for name in params}
    return optax.partition({"trained": optax.chain(*chain), "kept": optax.set_to_zero()}, labels)
