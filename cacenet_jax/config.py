"""Every field of a config with its default (the paper's), and the check that a config can be run.

A file in configs/ takes `paper()` and changes what its experiment changes.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from cacenet_jax.errors import UserError
from cacenet_jax.pretrained.sources import check_form

# What may differ when a run continues: where things are, how often they are reported, how they are computed and scored.
NOT_OF_THE_RUN = (
    "eval", "devices", "parallel", "log_every", "checkpoint_every", "data.root", "data.dir", "data.parts",
    "data.workers",
    "model.pair_memory_mib", "visualize", "export",
)  # fmt: skip


def paper() -> ml_collections.ConfigDict:
    """The settings of the paper's section 4.2; docs/paper_notes.md says where it is silent and what was chosen."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = placeholder(str)  # workdir of a trained network, whose parameters are the start of this run
    # Weights of the backbone: a file, hub:OWNER/NAME or package:NAME; with --mode=import those of a whole network.
    config.pretrained = placeholder(str)
    config.epochs = 80
    config.devices = 0  # local devices that each process uses, 0 for all
    config.parallel = "pmap"  # or shard_map
    config.log_every = 10  # steps
    config.checkpoint_every = 0  # steps, 0 for once an epoch
    config.eval_every = 0  # epochs between evaluations on the validation identities, 0 for the end alone

    config.data = ml_collections.ConfigDict()
    config.data.name = "market1501"
    config.data.root = placeholder(str)  # the user's folder or zip
    config.data.dir = "data/prepared"  # where prepared data sets are kept
    config.data.options = ml_collections.ConfigDict()  # options of the builder
    config.data.height = 384
    config.data.width = 128
    config.data.num_ids = 4  # P
    config.data.images_per_id = 4  # K
    config.data.hard_pool = 0  # draw a batch from one identity and so many that look most like it; 0: from all
    config.data.val_share = 0.0  # share of the training identities held out for validation
    config.data.val_seed = 0
    config.data.val_group = 1  # consecutive identities held out together: look-alikes of the synthetic data are 4
    config.data.parts = placeholder(str)  # folder of part labels, for data without their own (semantic alignment)
    config.data.workers = 0  # worker processes; 0 is faster on small machines

    config.augment = ml_collections.ConfigDict()
    config.augment.flip = 0.5
    config.augment.pad = 10  # pixels
    config.augment.erase = 0.5

    config.model = ml_collections.ConfigDict()
    config.model.backbone = "resnet50"  # a name of models/backbones.py, or MODULE:CLASS
    config.model.width = 0  # channels of the first stage, 0 for the backbone's own
    config.model.last_stride = 1
    config.model.backbone_fields = ""  # others of its fields: "head=False,drop_connect=0.2"
    config.model.embed_dim = 768  # F
    config.model.pairs = True  # False: the individual baseline of table 1
    config.model.pair_score = "conditional"  # of f(u|v) and f(v|u); or, without a graph: keypoints, evidence
    config.model.evidence_channels = 64  # of a region that local evidence compares
    config.model.frozen = False  # train the pair stage alone, on the network of init_from
    config.model.alignment = "attention"  # or individual, none, part, similarity, full, semantic (tables 1 and 2)
    config.model.neighbours = 1  # K of the similarity alignment
    config.model.kind = "discrepancy"  # or normal
    config.model.filters = "tied"  # or untied; residual: the graph of bottlenecks of the authors' release
    # kind, filters and affinity are of the graph: evidence reads none, keypoints affinity alone, rules kind and filters.
    config.model.affinity = "raw"  # between maps (the paper); or of l2, standardised nodes, correlation; bottleneck
    config.model.clue_weight = 0.0  # share of the clue distance in a pair's distance; 0: the paper's distance
    config.model.pooling = "mean"  # of a map to the encoder; or gem, the generalised mean
    config.model.shared_encoder = False  # one encoder for f(I) and f(u|v); with residual filters
    config.model.relu = False  # between an embedding and its classifier
    config.model.dropout = 0.0  # share of what a classifier sees that is 0 in training
    config.model.non_local = False  # blocks in the last three stages of a ResNet
    config.model.pair_memory_mib = 1024.0  # of a training step's pair grid on a device; past it blocks are recomputed
    config.model.dtype = "float32"  # or bfloat16

    config.loss = ml_collections.ConfigDict()
    config.loss.margin = 0.5
    config.loss.alpha = 0.9
    config.loss.identity = 1.0
    config.loss.triplet = 1.0
    config.loss.pair_identity = 1.0
    config.loss.pair_triplet = 1.0
    config.loss.evidence = 1.0  # of the list loss, with model.pair_score=evidence
    config.loss.label_smoothing = 0.0  # of the identity loss on f(I)
    config.loss.rectified = False  # the triplet losses see embeddings after a ReLU

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "sgd"  # or adamw
    config.optim.learning_rate = 6.25e-3  # peak, for a batch of reference_batch images
    config.optim.reference_batch = 16
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 5.0
    config.optim.clip_norm = 0.0  # largest norm of the gradient, 0 for no limit
    config.optim.attention_scale = 1.0  # learning rate of w and w' relative to the rest

    config.eval = ml_collections.ConfigDict()
    config.eval.data = placeholder(str)  # data set that --mode=evaluate scores in place of data.name
    config.eval.top_k = 100
    config.eval.camera_filter = True
    config.eval.mix = 0.5  # weight of the pair distance in the mixed ranking
    config.eval.flip = True  # average the maps of an image and its mirror image
    config.eval.batch_size = 64
    config.eval.pairs_per_call = 512  # of one device
    config.eval.map_dtype = "bfloat16"  # or float32: how the maps that are compared in re-scoring are stored
    config.eval.device_gib = 0.0  # of a device for these maps, 0 for 0.6 of it; more are streamed from the host
    config.eval.memory_gib = 4.0  # of a process's host for these maps; more lie in temporary files under data.dir
    config.eval.checkpoint = "last"  # or best, by validation mAP

    config.visualize = ml_collections.ConfigDict()  # of --mode=visualize
    config.visualize.num_queries = 4
    config.visualize.ranks = 10  # of a ranked list
    config.visualize.lines = 12  # strongest correspondences of two images

    config.export = ml_collections.ConfigDict()  # of --mode=export
    config.export.platforms = "cpu,cuda,tpu"  # what the artefacts run on; rocm too
    config.export.check_images = 3  # random images that an artefact is compared with the model on, also one by itself
    config.lock()  # a misspelt field in a config file is an error, not a new field
    config.data.options.unlock()
    return config


def released() -> ml_collections.ConfigDict:
    """The settings of the recipe that the authors published later; docs/paper_notes.md says how it differs."""
    config = paper()
    config.model.filters = "residual"
    config.model.affinity = "bottleneck"
    config.model.pooling = "gem"
    config.model.shared_encoder = True
    config.model.relu = True
    config.model.dropout = 0.5
    config.model.non_local = True
    config.loss.label_smoothing = 0.1
    config.loss.rectified = True
    config.loss.pair_identity = 2.0  # both orders of a pair, each with weight 1
    return config


def second_stage(init_from: str) -> ml_collections.ConfigDict:
    """The settings that make re-scoring pay on a network that is trained and stays as it is (docs/conditional_gain.md).

    Args:
        init_from: workdir of the first stage, whose data and network a config repeats.
    """
    config = paper()
    config.init_from = init_from
    config.log_every = 20
    config.data.num_ids = 8
    config.data.hard_pool = 15
    config.augment.pad = 5
    config.model.frozen = True
    config.model.pair_score = "evidence"
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.reference_batch = 32
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 0.0
    config.eval.mix = 0.5
    return config


def _need(ok: bool, field: str, found: Any, expected: str, remedy: str) -> None:
    if not ok:
        raise UserError(f"config.{field}: found {found!r}, expected {expected}; {remedy}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, one line, for the first field whose value cannot be."""
    from cacenet_jax.models import backbones  # here, so that a typo in a flag need not wait for jax
    from cacenet_jax.models.pair_stages.conditional.alignment import STRATEGIES

    data, optim, evaluation = config.data, config.optim, config.eval
    choices = {
        "parallel": ("pmap", "shard_map"),
        "model.pair_score": ("conditional", "keypoints", "evidence"),
        "model.alignment": tuple(STRATEGIES),
        "model.kind": ("discrepancy", "normal"),
        "model.filters": ("tied", "untied", "residual"),
        "model.affinity": ("raw", "l2", "standardised", "correlation", "bottleneck"),
        "model.pooling": ("mean", "gem"),
        "model.dtype": ("float32", "bfloat16"),
        "eval.map_dtype": ("bfloat16", "float32"),
        "optim.name": ("sgd", "adamw"),
        "eval.checkpoint": ("last", "best"),
    }
    for field, allowed in choices.items():
        found = _lookup(config, field)
        _need(found in allowed, field, found, "one of " + ", ".join(allowed), "choose one of them")
    backbones.check(config.model.backbone, backbones.configured(config.model))
    if (score := config.model.pair_score) != "conditional":
        _need(config.model.alignment == "attention", "model.alignment", config.model.alignment, "'attention' with "
              f"model.pair_score={score}", "it has an alignment of its own")  # fmt: skip
        _need(config.model.clue_weight == 0, "model.clue_weight", config.model.clue_weight, "0 with "
              f"model.pair_score={score}", "choose one of the two distances")  # fmt: skip
    _check_residual(config.model)
    if config.pretrained:
        check_form(config.pretrained)
        _need(not config.init_from, "pretrained", config.pretrained, f"none with init_from={config.init_from}",
              "a run starts from one of them")  # fmt: skip
    if config.model.frozen:
        _need(evaluation.flip, "eval.flip", False, "True with model.frozen",
              "the second stage trains on maps that are averaged over both mirrorings")  # fmt: skip
        _need(config.model.pairs, "model.frozen", True, "False without a pair stage", "there would be nothing to train")
        _need(bool(config.init_from), "init_from", config.init_from, "a workdir with model.frozen",
              "set it to that of the network to freeze")  # fmt: skip
    if data.hard_pool:
        _need(config.model.frozen, "data.hard_pool", data.hard_pool, "0 without model.frozen",
              "who looks alike is told by a network that does not change")  # fmt: skip
        _need(data.hard_pool >= data.num_ids - 1, "data.hard_pool", data.hard_pool,
              f"at least num_ids - 1, {data.num_ids - 1}", "raise it")  # fmt: skip
    _need(data.images_per_id >= 2, "data.images_per_id", data.images_per_id, "at least 2",
          "the triplet loss needs two images of an identity")  # fmt: skip
    _need(data.num_ids >= 2, "data.num_ids", data.num_ids, "at least 2", "the triplet loss needs two identities")
    positive = ("epochs", "data.height", "data.width", "model.embed_dim", "model.last_stride", "log_every",
                "optim.learning_rate", "optim.reference_batch", "eval.top_k", "eval.memory_gib", "eval.batch_size",
                "eval.pairs_per_call", "visualize.num_queries", "export.check_images", "visualize.ranks", "visualize.lines",
                "model.pair_memory_mib",
                "model.neighbours", "model.evidence_channels", "data.val_group")  # fmt: skip
    for field in positive:
        _need(_lookup(config, field) > 0, field, _lookup(config, field), "more than 0", "raise it")
    not_negative = (
        "seed", "data.val_seed", "devices", "checkpoint_every", "eval_every", "data.workers", "augment.pad", "model.width",
        "loss.margin", "loss.identity", "loss.triplet", "loss.pair_identity", "loss.pair_triplet",
        "loss.evidence", "data.hard_pool",
        "optim.weight_decay", "optim.warmup_epochs", "optim.clip_norm", "optim.attention_scale",
        "eval.device_gib",
    )  # fmt: skip
    for field in not_negative:
        _need(_lookup(config, field) >= 0, field, _lookup(config, field), "0 or more", "raise it")
    for field in ("augment.flip", "augment.erase", "loss.alpha", "model.clue_weight", "eval.mix", "optim.momentum"):
        _need(0 <= _lookup(config, field) <= 1, field, _lookup(config, field), "a value from 0 to 1", "change it")
    for field in ("model.dropout", "loss.label_smoothing"):
        _need(0 <= _lookup(config, field) < 1, field, _lookup(config, field), "0 or more and less than 1", "lower it")
    _need(0 <= data.val_share < 1, "data.val_share", data.val_share, "0 or more and less than 1", "change it")
    _need(optim.warmup_epochs < config.epochs, "optim.warmup_epochs", optim.warmup_epochs,
          f"less than config.epochs, {config.epochs}", "lower it or train longer")  # fmt: skip
    _need(evaluation.checkpoint == "last" or data.val_share > 0, "eval.checkpoint", evaluation.checkpoint,
          "'last' where no identities are held out", "set config.data.val_share or config.eval.checkpoint=last")  # fmt: skip


def _check_residual(model: ml_collections.ConfigDict) -> None:
    """The fields of the released recipe that go together."""
    residual = model.filters == "residual"
    _need(residual == (model.affinity == "bottleneck"), "model.affinity", model.affinity,
          f"{'' if residual else 'another than '}'bottleneck' with model.filters={model.filters}",
          "set model.filters=residual and model.affinity=bottleneck together, or neither")  # fmt: skip
    _need(residual or not model.shared_encoder, "model.shared_encoder", True,
          f"False with model.filters={model.filters}", "only residual filters can share the encoder")  # fmt: skip
    conditional = model.pairs and model.pair_score == "conditional"
    _need(model.pooling == "mean" or residual or not conditional, "model.pooling", model.pooling,
          f"'mean' with model.filters={model.filters}",
          "the mean is taken before these filters; set model.filters=residual")  # fmt: skip
    _need(model.pooling == "mean" or model.clue_weight == 0, "model.clue_weight", model.clue_weight,
          "0 with model.pooling=gem", "clues compare nodes that a mean pools")  # fmt: skip
    if residual and model.pairs:
        expected = {"pair_score": "conditional", "alignment": "attention", "kind": "discrepancy", "clue_weight": 0.0}
        for name, value in (expected | {"frozen": False}).items():
            _need(model[name] == value, f"model.{name}", model[name], f"{value!r} with model.filters=residual",
                  "the graph of bottlenecks has one form")  # fmt: skip


def _lookup(config: ml_collections.ConfigDict, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionary to (dotted field, value), in the order of the fields."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def elsewhere(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the data set of eval.data in place of its own: a cross-domain test.

    Of data.options those stay that its builder has too, such as check_counts.

    Raises:
        UserError: there is no such data set.
    """
    config = config.copy_and_resolve_references()
    if name := config.eval.data:
        from cacenet_jax.data.builders.prepare import builder_class  # here: it waits for libraries that read data

        shared = {key: value for key, value in config.data.options.items() if key in builder_class(name).OPTIONS}
        with config.unlocked():
            config.data.name, config.data.options = name, ml_collections.ConfigDict(shared)
    return config


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Plain nested dictionary of a config, references resolved, as config.json holds it."""
    return config.copy_and_resolve_references().to_dict()


def differences(recorded: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """`field: recorded -> current` of each field that makes two runs different ones.

    A field that a recorded config lacks is younger than its run, which did what the default does.
    """
    old, new = dict(flatten(to_dict(paper()))) | dict(flatten(recorded)), dict(flatten(current))
    ours = [
        f for f in sorted(old.keys() | new.keys()) if not any(f == n or f.startswith(n + ".") for n in NOT_OF_THE_RUN)
    ]
    return [f"{f}: {old.get(f)!r} -> {new.get(f)!r}" for f in ours if old.get(f) != new.get(f)]
