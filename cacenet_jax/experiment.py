"""A config read once: a `ConfigDict` becomes typed settings, and these the objects of an experiment.

    experiment = experiment.read(config)
    net = experiment.network.build(num_identities)
    step = make_train_step(net, optimizer, experiment.loss, experiment.augmentation(), key)

Modules below take these settings, or plain arguments, and know no config.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cacenet_jax import optim
from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.data.augment import Augment
from cacenet_jax.distributed.device_map import MapMode
from cacenet_jax.losses import LossWeights
from cacenet_jax.models import backbones, pair_stages
from cacenet_jax.models.cacenet import INDIVIDUAL_PARAMETERS, CACENet

_GIVEN = ("dtype", "axis_name")  # fields of every backbone that a config has elsewhere


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set and how training draws batches from it.

    Attributes:
        name: of the data set.
        root: the user's folder or zip; None takes the one prepared copy.
        dir: where prepared data sets are kept.
        options: of the data set.
        height: pixels of an image.
        width: likewise.
        num_ids: P, identities in a batch.
        images_per_id: K, images of each.
        hard_pool: draw a batch from one identity and this many that look most like it; 0: from all.
        val_share: share of the training identities held out for validation.
        val_seed: of their choice.
        val_group: consecutive identities held out together.
        parts: folder of part labels, for data without their own.
        workers: worker processes that read images.
    """

    name: str
    root: str | None
    dir: str
    options: Mapping[str, Any]
    height: int
    width: int
    num_ids: int
    images_per_id: int
    hard_pool: int
    val_share: float
    val_seed: int
    val_group: int
    parts: str | None
    workers: int

    @property
    def batch_size(self) -> int:
        """B = P K, images of a global batch."""
        return self.num_ids * self.images_per_id

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class Network:
    """Backbone, individual head and pair stage.

    Attributes:
        backbone: a name in models/backbones, or MODULE:CLASS.
        backbone_fields: fields of the backbone that are not its defaults.
        pair_stage: a name in models/pair_stages, MODULE:CLASS, or none.
        pair: fields of the pair stage that are not its defaults.
        embed_dim: F.
        pooling: of a map to f(I): "mean" or "gem".
        relu: apply a ReLU to embeddings in front of classifiers and triplet losses.
        dropout: rate in front of classifiers.
        frozen: keep the backbone and the individual head as they are.
        pair_memory_mib: budget of the training grid on a device.
        dtype: compute type.
    """

    backbone: str
    backbone_fields: Mapping[str, Any]
    pair_stage: str
    pair: Mapping[str, Any]
    embed_dim: int
    pooling: Literal["mean", "gem"]
    relu: bool
    dropout: float
    frozen: bool
    pair_memory_mib: float
    dtype: str

    @property
    def has_pairs(self) -> bool:
        """True with a pair stage; without one this is the individual baseline."""
        return self.pair_stage != NO_PAIR_STAGE

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Names of the parameters that learn at a rate of their own, without weight decay."""
        stage = self.build(1).pair_stage
        return frozenset() if stage is None else stage.attention_parameters

    def build_backbone(self, axis_name: str | None = None) -> Any:
        """Return the backbone; a `backbones.Backbone`."""
        given = {"dtype": jnp.dtype(self.dtype), "axis_name": axis_name}
        return backbones.build(self.backbone, **self.backbone_fields, **given)

    def build(self, num_identities: int, axis_name: str | None = None) -> CACENet:
        """Return the network.

        Args:
            num_identities: I, classes of the training set.
            axis_name: device axis for collectives in training.

        Raises:
            UserError: no such backbone or pair stage, or a field that it does not have.
        """
        backbone = self.build_backbone(axis_name)
        common: dict[str, Any] = {
            "num_identities": num_identities,
            "embed_dim": self.embed_dim,
            "relu": self.relu,
            "dropout": self.dropout,
            "dtype": jnp.dtype(self.dtype),
            "axis_name": axis_name,
        }
        stage = None
        if self.has_pairs:
            given = {"channels": backbone.channels, "memory_mib": self.pair_memory_mib}
            stage = pair_stages.build(self.pair_stage, **given, **common, **self.pair)
        net = CACENet(backbone=backbone, pair_stage=stage, pooling=self.pooling, frozen=self.frozen, **common)
        net.validate()
        return net


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images; `data.augment.Augment` has the rest of its constants.

    Attributes:
        flip: probability of a mirror image.
        pad: pixels added on each side before a random crop.
        erase: probability of random erasing.
    """

    flip: float
    pad: int
    erase: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scoring of a trained network.

    Attributes:
        data: data set scored in place of the training data's test split; None for that one.
        top_k: images of each query that are re-scored.
        camera_filter: leave out images of the query's identity by its camera.
        mix: weight of the pair distance in the mixed ranking.
        flip: average the maps of an image and its mirror image.
        batch_size: images of a batch.
        pairs_per_call: pairs that one device scores at once.
        map_dtype: type of the stored terms of the pair stage.
        device_gib: memory of a device for them; 0 for 0.6 of it.
        memory_gib: memory of a process's host for them.
        checkpoint: "last", or "best" by validation mAP.
    """

    data: str | None
    top_k: int
    camera_filter: bool
    mix: float
    flip: bool
    batch_size: int
    pairs_per_call: int
    map_dtype: str
    device_gib: float
    memory_gib: float
    checkpoint: str


@dataclasses.dataclass(frozen=True)
class Visualization:
    """Figures of --mode=visualize.

    Attributes:
        num_queries: queries that are drawn.
        ranks: images of a ranked list.
        lines: strongest correspondences of two images.
    """

    num_queries: int
    ranks: int
    lines: int


@dataclasses.dataclass(frozen=True)
class Export:
    """Artefacts of --mode=export.

    Attributes:
        platforms: that they run on, joined by commas.
        check_images: random images that an artefact is compared with the model on.
    """

    platforms: str
    check_images: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of an experiment.

    Attributes:
        seed: of initialisation, batches, augmentation and dropout.
        init_from: workdir of a trained network to start from.
        pretrained: published weights of the backbone.
        epochs: of training.
        devices: local devices that each process uses, 0 for all.
        parallel: "pmap" or "shard_map".
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints, 0 for once an epoch.
        eval_every: epochs between evaluations on the validation identities, 0 for the end alone.
        data: data set and batches.
        network: backbone, individual head and pair stage.
        augment: of training images.
        loss: weights and constants of the loss.
        optimiser: optimiser and learning rate.
        evaluation: scoring.
        visualization: figures.
        export: artefacts.
    """

    seed: int
    init_from: str | None
    pretrained: str | None
    epochs: int
    devices: int
    parallel: MapMode
    log_every: int
    checkpoint_every: int
    eval_every: int
    data: Data
    network: Network
    augment: Augmentation
    loss: LossWeights
    optimiser: optim.Settings
    evaluation: Evaluation
    visualization: Visualization
    export: Export

    def learning_rate(self, steps_per_epoch: int) -> optax.Schedule:
        """Return the learning rate of each step."""
        batch_size, epochs = self.data.batch_size, self.epochs
        return optim.schedule(self.optimiser, batch_size, epochs, steps_per_epoch)

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Return the optimiser; its state does not depend on the number of steps."""
        network = self.network
        return optim.optimizer(
            self.optimiser,
            self.learning_rate(steps_per_epoch),
            kept=INDIVIDUAL_PARAMETERS if network.frozen else (),
            attention=network.attention_parameters,
        )

    def augmentation(self) -> Augment:
        """Return the augmentation of training images, with the pixel normalisation of the backbone."""
        backbone = self.network.build_backbone()
        return Augment(**dataclasses.asdict(self.augment), mean=backbone.pixel_mean, std=backbone.pixel_std)

    def part_labels(self) -> Any:
        """Return the part-label reader, a `data.part_labels.PartLabels`; None for a network that needs no labels."""
        from cacenet_jax.data.part_labels import PartLabels  # here: an export to ONNX has no libraries that read data

        return PartLabels(self.data.parts) if self.network.build(1).image_channels > 3 else None


def read(config: ConfigDict) -> Experiment:
    """Return the settings of a config.

    Args:
        config: every field of `cacenet_jax.config.paper`, complete and valid (`cacenet_jax.run`).
    """
    values = config.copy_and_resolve_references().to_dict()
    return Experiment(
        data=Data(**values.pop("data")),
        network=Network(**values.pop("model")),
        augment=Augmentation(**values.pop("augment")),
        loss=LossWeights(**values.pop("loss")),
        optimiser=optim.Settings(**values.pop("optim")),
        evaluation=Evaluation(**values.pop("eval")),
        visualization=Visualization(**values.pop("visualize")),
        export=Export(**values.pop("export")),
        **values,
    )


def defaults(backbone: str, pair_stage: str) -> dict[str, dict[str, Any]]:
    """Return the defaults of a backbone's and a pair stage's own fields, by the config field of the choice.

    Raises:
        UserError: there is no such backbone or pair stage.
    """
    of_backbone = {name: value for name, value in backbones.defaults(backbone).items() if name not in _GIVEN}
    of_pair = {} if pair_stage == NO_PAIR_STAGE else pair_stages.fields(pair_stage)
    return {"model.backbone": of_backbone, "model.pair_stage": of_pair}
