"""From a config to the objects it describes."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cacenet_jax.data.augment import Augment
from cacenet_jax.models import backbones
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.train_step import LossWeights


def model(config: ConfigDict, num_identities: int, axis_name: str | None = None) -> CACENet:
    """The network of a config for a number of training identities."""
    settings = config.model
    dtype = jnp.dtype(settings.dtype)
    fields = backbones.configured(settings) | {"dtype": dtype, "axis_name": axis_name}
    return CACENet(
        backbone=backbones.build(settings.backbone, **fields),
        num_identities=num_identities,
        embed_dim=settings.embed_dim,
        pairs=settings.pairs,
        pair_score=settings.pair_score,
        evidence_channels=settings.evidence_channels,
        frozen=settings.frozen,
        alignment=settings.alignment,
        neighbours=settings.neighbours,
        kind=settings.kind,
        filters=settings.filters,
        keys=settings.affinity,
        clue_weight=settings.clue_weight,
        pooling=settings.pooling,
        shared_encoder=settings.shared_encoder,
        relu=settings.relu,
        dropout=settings.dropout,
        pair_memory_mib=settings.pair_memory_mib,
        dtype=dtype,
        axis_name=axis_name,
    )


def part_labels(config: ConfigDict) -> Any:
    """What reads part labels, a `data.parts.PartLabels`; None for a network that needs none."""
    from cacenet_jax.data.part_labels import PartLabels  # here: an export to ONNX has no libraries that read data

    needed = config.model.pairs and config.model.alignment == "semantic"
    return PartLabels(config.data.parts) if needed else None


def loss_weights(config: ConfigDict) -> LossWeights:
    """Weights and constants of the loss."""
    return LossWeights(**config.loss.to_dict())


def augmentation(config: ConfigDict) -> Augment:
    """What happens to a training image; the backbone says how its pixels are normalised."""
    backbone = backbones.build(config.model.backbone, **backbones.configured(config.model))
    return Augment(**config.augment.to_dict(), mean=backbone.pixel_mean, std=backbone.pixel_std)
