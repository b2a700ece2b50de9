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
        learning_rate: peak, for a batch of `reference_batch` images.
        reference_batch: images.
        momentum: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        warmup_epochs: of a linear rise from 0.
        clip_norm: largest norm of the gradient, 0 for no limit.
        attention_scale: learning rate of w and w' relative to the rest.
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
    """Linear warm-up from 0 to the peak, then cosine to 0 at the last epoch.

    Args:
        settings: peak and warm-up.
        batch_size: images of the global batch; the peak scales linearly with it.
        epochs: of training.
        steps_per_epoch: steps of one epoch.

    Returns:
        Step to learning rate.
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
    """Build SGD with momentum and L2 weight decay (the paper), or AdamW for networks from scratch.

    Weight decay pulls on every parameter but those of the attention, whose scale a normalised graph does not see; they
    learn at `attention_scale` times the rate of the rest.

    Args:
        settings: optimiser, weight decay and clipping.
        rate: step to learning rate, as `schedule` makes it.
        kept: top-level names of parameters that do not change and have no state.
        attention: names of the attention's parameters (`PairStage.attention_parameters`).

    Raises:
        UserError: no such optimiser.
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
    # Kept parameters have no state: AdamW's two moments of a backbone would be twice its size in memory and checkpoints.
    labels = lambda params: {name: "kept" if name in kept else "trained" for name in params}
    return optax.partition({"trained": optax.chain(*chain), "kept": optax.set_to_zero()}, labels)
