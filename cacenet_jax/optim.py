"""Optimiser and learning rate, from the config alone (paper section 4.2)."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from cacenet_jax.errors import UserError

FROZEN = ("backbone", "gemp", "individual_head")  # what config.model.frozen keeps
ATTENTION_WEIGHTS = ("intra_weight", "cross_weight", "intra_threshold", "cross_threshold")


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine to 0 at the last epoch.

    Args:
        config: optim.learning_rate (peak for a batch of optim.reference_batch images), optim.warmup_epochs, epochs.
        steps_per_epoch: steps of one epoch.

    Returns:
        Step to learning rate; the peak scales linearly with the global batch.
    """
    batch = config.data.num_ids * config.data.images_per_id
    peak = config.optim.learning_rate * batch / config.optim.reference_batch
    warmup = round(config.optim.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    fall = optax.cosine_decay_schedule(peak, max(total - warmup, 1))
    return optax.join_schedules([rise, fall], [warmup])


def _is_attention(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, "key", None) in ATTENTION_WEIGHTS for key in path)


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with momentum and L2 weight decay (the paper), or AdamW for networks from scratch.

    Weight decay pulls on every parameter but the attention weights w and w', whose scale a normalised graph does not
    see, and the thresholds of their affinities. These learn at `optim.attention_scale` times the rate of the rest. With
    `model.frozen` backbone and individual head do not change and have no state.
    """
    opt = config.optim
    rate = schedule(config, steps_per_epoch)

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: not _is_attention(path), params)

    decay = optax.add_decayed_weights(opt.weight_decay, mask=decayed)
    if opt.name == "sgd":
        parts = [decay, optax.trace(opt.momentum)]
    elif opt.name == "adamw":
        parts = [optax.scale_by_adam(), decay]
    else:
        raise UserError(f"config.optim.name: found {opt.name!r}, expected 'sgd' or 'adamw'")
    if opt.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(opt.clip_norm))

    def scale_attention(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x * opt.attention_scale if _is_attention(path) else x, updates
        )

    attention = optax.stateless(lambda updates, params: scale_attention(updates))
    chain = [*parts, attention, optax.scale_by_learning_rate(rate)]
    if not config.model.frozen:
        return optax.chain(*chain)
    # What is kept has no state: AdamW's two moments of a backbone would be twice its size in memory and checkpoints.
    which = lambda params: {name: "kept" if name in FROZEN else "trained" for name in params}
    return optax.partition({"trained": optax.chain(*chain), "kept": optax.set_to_zero()}, which)
