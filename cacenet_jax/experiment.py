"""Typed settings of an experiment, read once from a `ConfigDict`.

    experiment = experiment.read(config)
    net = experiment.network.build(num_identities)
    step = make_train_step(net, optimizer, experiment.loss, experiment.augmentation(), key)

Lower-level modules take these settings or plain arguments, never a config.
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

_GIVEN = ("dtype", "axis_name")  # backbone fields that `Network.build_backbone` sets


@dataclasses.dataclass(frozen=True)
class Data:
    """Data set and batch sampling.

    Attributes:
        name: name of the data set.
        root: user's source folder or zip file; None to use the prepared copy, of which there must be only one.
        dir: folder of the prepared data sets.
        options: options of the data set.
        on_error: "raise" to stop at a broken image, "skip" to leave it out.
        height: image height in pixels.
        width: image width in pixels.
        num_ids: P, number of identities per batch.
        images_per_id: K, number of images per identity.
        hard_pool: number of look-alikes of an identity from which the rest of its batch is drawn, 0 to draw from all
            identities.
        val_share: fraction of the training identities held out for validation.
        val_seed: random seed for choosing the held-out identities.
        val_group: number of consecutive identities held out together.
        parts: folder of part labels, for data sets without them.
        workers: number of worker processes that read images.
    """

    name: str
    root: str | None
    dir: str
    options: Mapping[str, Any]
    on_error: str
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
        """Global batch size, B = P K."""
        return self.num_ids * self.images_per_id

    @property
    def image_size(self) -> tuple[int, int]:
        """Image height and width."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class Network:
    """Backbone, individual head and pair stage.

    Attributes:
        backbone: name in models/backbones, or MODULE:CLASS.
        backbone_fields: overrides of the backbone's default fields.
        pair_stage: name in models/pair_stages, MODULE:CLASS, or "none".
        pair: overrides of the pair stage's default fields.
        embed_dim: F, embedding size.
        pooling: pooling before the individual head, "mean" or "gem".
        relu: apply a ReLU to embeddings before classifiers and triplet losses.
        dropout: dropout rate before classifiers.
        head_bias: biases in the embedding layer of f(I) and in its classifier.
        embedding_relu: apply a ReLU to f(I) itself, in retrieval too.
        frozen: freeze the backbone and the individual head.
        pair_memory_mib: device memory for the training pair grid, in MiB.
        dtype: computation dtype.
    """

    backbone: str
    backbone_fields: Mapping[str, Any]
    pair_stage: str
    pair: Mapping[str, Any]
    embed_dim: int
    pooling: Literal["mean", "gem"]
    relu: bool
    dropout: float
    head_bias: bool
    embedding_relu: bool
    frozen: bool
    pair_memory_mib: float
    dtype: str

    @property
    def has_pairs(self) -> bool:
        """True if there is a pair stage, False for the individual baseline."""
        return self.pair_stage != NO_PAIR_STAGE

    @property
    def attention_parameters(self) -> frozenset[str]:
        """Names of the parameters with a separate learning rate and no weight decay."""
        stage = self.build(1).pair_stage
        return frozenset() if stage is None else stage.attention_parameters

    def build_backbone(self, axis_name: str | None = None) -> Any:
        """Build the backbone, a `backbones.Backbone`."""
        given = {"dtype": jnp.dtype(self.dtype), "axis_name": axis_name}
        return backbones.build(self.backbone, **self.backbone_fields, **given)

    def build(self, num_identities: int, axis_name: str | None = None) -> CACENet:
        """Build the network.

        Args:
            num_identities: I, number of training identities.
            axis_name: device axis for collectives during training.

        Raises:
            UserError: the backbone, the pair stage or one of their fields is unknown, or the parts cannot be combined.
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
        net = CACENet(
            backbone=backbone,
            pair_stage=stage,
            pooling=self.pooling,
            head_bias=self.head_bias,
            embedding_relu=self.embedding_relu,
            frozen=self.frozen,
            **common,
        )
        net.validate()
        return net


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images; `data.augment.Augment` defines the remaining constants.

    Attributes:
        flip: probability of a horizontal flip.
        pad: padding in pixels on each side before a random crop.
        erase: probability of random erasing.
    """

    flip: float
    pad: int
    erase: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a trained network.

    Attributes:
        data: data set to evaluate on; None for the training data set's test split.
        top_k: number of re-scored images per query.
        camera_filter: exclude gallery images that share both identity and camera with the query.
        mix: weight of the pair distance in the mixed ranking.
        distance: distance of embeddings, "cosine", or "euclidean" without normalisation.
        rerank: re-ranking method of additional rankings, "k_reciprocal" or "query_expansion"; "none" for no such.
        verification: also compute verification metrics of the individual distance.
        flip: average the feature maps of an image and its mirror image.
        batch_size: number of images per batch.
        pairs_per_call: number of pairs that a device scores per call.
        map_dtype: storage dtype of the pair-stage terms.
        device_gib: memory for pair-stage terms on each device, in GiB; 0 for 60% of the device's memory.
        memory_gib: host memory for pair-stage terms in each process, in GiB.
        checkpoint: "last", or "best" by validation mAP.
    """

    data: str | None
    top_k: int
    camera_filter: bool
    mix: float
    distance: str
    rerank: str
    verification: bool
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
        num_queries: number of queries to draw, unless they are chosen.
        queries, pair: names of chosen queries and of two images to draw together, separated by commas; empty for none.
        ranks: number of images per ranked list.
        lines: number of strongest correspondences drawn between two images.
    """

    num_queries: int
    queries: str
    pair: str
    ranks: int
    lines: int


@dataclasses.dataclass(frozen=True)
class Export:
    """Artefacts of --mode=export.

    Attributes:
        platforms: target platforms, separated by commas.
        check_images: number of random images for checking an artefact against the model.
    """

    platforms: str
    check_images: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of an experiment.

    Attributes:
        seed: random seed for initialisation, batches, augmentation and dropout.
        init_from: workdir of a trained network to initialise from.
        pretrained: pretrained weights of the backbone.
        epochs: number of training epochs.
        devices: number of local devices per process, 0 for all.
        parallel: "pmap" or "shard_map".
        log_every: number of steps between logged metrics.
        checkpoint_every: number of steps between checkpoints, 0 for once per epoch.
        checkpoints_kept: number of newest checkpoints to keep, besides the best.
        grace_s: time allowed for saving after SIGTERM or Ctrl-C, in seconds.
        eval_every: number of epochs between evaluations on the validation identities, 0 for only at the end.
        data: data set and batch sampling.
        network: backbone, individual head and pair stage.
        augment: augmentation of training images.
        loss: weights and constants of the loss.
        optimiser: optimiser and learning rate.
        evaluation: evaluation settings.
        visualization: figure settings.
        export: export settings.
    """

    seed: int
    init_from: str | None
    pretrained: str | None
    epochs: int
    devices: int
    parallel: MapMode
    log_every: int
    checkpoint_every: int
    checkpoints_kept: int
    grace_s: float
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
        """Return the learning-rate schedule."""
        batch_size, epochs = self.data.batch_size, self.epochs
        return optim.schedule(self.optimiser, batch_size, epochs, steps_per_epoch)

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Return the optimiser. The structure of its state does not depend on the number of steps."""
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
        """Return the part-label reader, a `data.part_labels.PartLabels`, or None if the network needs no labels."""
        # Imported here because the ONNX export environment lacks the data-reading libraries.
        from cacenet_jax.data.part_labels import PartLabels

        return PartLabels(self.data.parts) if self.network.build(1).image_channels > 3 else None


def read(config: ConfigDict) -> Experiment:
    """Return the settings of a config.

    Args:
        config: complete and validated config with all fields of `cacenet_jax.config.paper` (see `cacenet_jax.run`).
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
    """Return the default fields of a backbone and a pair stage, keyed by the config field that selects each.

    Raises:
        UserError: the backbone or pair stage is unknown.
    """
    of_backbone = {name: value for name, value in backbones.defaults(backbone).items() if name not in _GIVEN}
    of_pair = {} if pair_stage == NO_PAIR_STAGE else pair_stages.fields(pair_stage)
    return {"model.backbone": of_backbone, "model.pair_stage": of_pair}
