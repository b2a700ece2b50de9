"""From a config to the objects it describes."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cacenet_jax.data.augment import Augment
from cacenet_jax.losses import LossWeights
from cacenet_jax.models import backbones, pair_stages
from cacenet_jax.models.cacenet import CACENet


def model(config: ConfigDict, num_identities: int, axis_name: str | None = None) -> CACENet:
    """The network of a config for a number of training identities."""
    settings = config.model
    dtype = jnp.dtype(settings.dtype)
    fields = backbones.configured(settings) | {"dtype": dtype, "axis_name": axis_name}
    backbone = backbones.build(settings.backbone, **fields)
    common = {"embed_dim": settings.embed_dim, "num_identities": num_identities, "relu": settings.relu}
    common |= {"dropout": settings.dropout, "dtype": dtype, "axis_name": axis_name}
    stage = None
    if settings.pairs:
        name = "released" if settings.filters == "residual" else settings.pair_score
        own = {
            "released": {"shared_encoder": settings.shared_encoder},
            "keypoints": {"keys": settings.affinity},
            "evidence": {"features": settings.evidence_channels},
            "conditional": {
                "alignment": settings.alignment, "neighbours": settings.neighbours, "kind": settings.kind,
                "filters": settings.filters, "keys": settings.affinity, "clue_weight": settings.clue_weight,
            },
        }[name]  # fmt: skip
        stage = pair_stages.build(
            name, channels=backbone.channels, memory_mib=settings.pair_memory_mib, **common, **own
        )
    return CACENet(backbone=backbone, pair_stage=stage, pooling=settings.pooling, frozen=settings.frozen, **common)


def part_labels(config: ConfigDict) -> Any:
    """What reads part labels, a `data.parts.PartLabels`; None for a network that needs none."""
    from cacenet_jax.data.part_labels import PartLabels  # here: an export to ONNX has no libraries that read data

    needed = config.model.pairs and config.model.alignment == "semantic"
    return PartLabels(config.data.parts) if needed else None


def loss_weights(config: ConfigDict) -> LossWeights:
    """Weights and constants of the loss."""
    given = config.loss.to_dict()
    given.pop("rectified")
    return LossWeights(**given)


def augmentation(config: ConfigDict) -> Augment:
    """What happens to a training image; the backbone says how its pixels are normalised."""
    backbone = backbones.build(config.model.backbone, **backbones.configured(config.model))
    return Augment(**config.augment.to_dict(), mean=backbone.pixel_mean, std=backbone.pixel_std)
