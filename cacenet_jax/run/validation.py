"""Validation of a config before a run starts; all mistakes are reported together, one line per field."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from cacenet_jax.config import NO_PAIR_STAGE
from cacenet_jax.data.builders.prepare import builder_class
from cacenet_jax.data.builders.scan import ON_ERROR
from cacenet_jax.errors import UserError
from cacenet_jax.models import backbones, pair_stages
from cacenet_jax.pretrained.sources import check_form
from cacenet_jax.retrieval.distances import DISTANCES, RERANKINGS
from cacenet_jax.retrieval.rankings import NO_RERANKING
from cacenet_jax.run.choices import CHOICES, lookup

_CHOICES = {
    "parallel": ("pmap", "shard_map"),
    "model.pooling": ("mean", "gem"),
    "model.dtype": ("float32", "bfloat16"),
    "eval.map_dtype": ("bfloat16", "float32"),
    "eval.distance": tuple(DISTANCES),
    "eval.rerank": (NO_RERANKING, *RERANKINGS),
    "optim.name": ("sgd", "adamw"),
    "eval.checkpoint": ("last", "best"),
    "data.on_error": ON_ERROR,
}
_POSITIVE = (
    "epochs", "checkpoints_kept", "grace_s",
    "data.height", "data.width", "model.embed_dim", "log_every", "optim.learning_rate", "optim.reference_batch",
    "eval.top_k", "eval.memory_gib", "eval.batch_size", "eval.pairs_per_call", "visualize.num_queries",
    "export.check_images", "visualize.ranks", "visualize.lines", "model.pair_memory_mib", "data.val_group",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "data.val_seed", "devices", "checkpoint_every", "eval_every", "data.workers", "augment.pad", "loss.margin",
    "loss.identity", "loss.triplet", "loss.pair_identity", "loss.pair_triplet", "loss.evidence", "data.hard_pool",
    "optim.weight_decay", "optim.warmup_epochs", "optim.clip_norm", "optim.attention_scale", "eval.device_gib",
)  # fmt: skip
_SHARES = ("augment.flip", "augment.erase", "loss.alpha", "eval.mix", "optim.momentum")
_SHARES_BELOW_1 = ("model.dropout", "loss.label_smoothing", "data.val_share")


def validate(config: ConfigDict, source: Callable[[str], str] | None = None) -> None:
    """Check every field of a config.

    Args:
        config: complete config (`cacenet_jax.run.completion`).
        source: function that returns where a dotted field was set, a config file or the command line; None if unknown.

    Raises:
        UserError: the config has mistakes; the message has one line per field.
    """
    mistakes = dict(_mistakes(config, source or (lambda field: "")))  # keeps the last mistake of each field
    if mistakes:
        raise UserError("\n".join(mistakes.values()))


def _mistakes(config: ConfigDict, source: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield (field, error line) for each mistake."""
    yield from _values(config)
    yield from _together(config)
    yield from _own_fields(config, source)


def _line(config: ConfigDict, field: str, expected: str, remedy: str) -> tuple[str, str]:
    return field, f"config.{field}: found {lookup(config, field)!r}, expected {expected}; {remedy}"


def _values(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield mistakes in single values."""
    for field, allowed in _CHOICES.items():
        if lookup(config, field) not in allowed:
            yield _line(config, field, "one of " + ", ".join(allowed), "choose one of them")
    for fields, allows, expected, remedy in (
        (_POSITIVE, lambda value: value > 0, "more than 0", "raise it"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "0 or more", "raise it"),
        (_SHARES, lambda value: 0 <= value <= 1, "a value from 0 to 1", "change it"),
        (_SHARES_BELOW_1, lambda value: 0 <= value < 1, "0 or more and less than 1", "change it"),
    ):
        for field in fields:
            if (value := lookup(config, field)) is None:
                yield _line(config, field, "a number", "give one")
            elif not allows(value):
                yield _line(config, field, expected, remedy)
    if config.pretrained:
        try:
            check_form(config.pretrained)
        except UserError as error:
            yield "pretrained", str(error)


def _together(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield conflicts between fields."""
    data, evaluation, frozen = config.data, config.eval, config.model.frozen

    def need(allowed: bool, field: str, expected: str, remedy: str) -> Iterator[tuple[str, str]]:
        if not allowed:
            yield _line(config, field, expected, remedy)

    if config.pretrained:
        yield from need(not config.init_from, "pretrained", f"none with init_from={config.init_from}",
                        "a run starts from one of them")  # fmt: skip
    if frozen:
        yield from need(evaluation.flip, "eval.flip", "True with model.frozen",
                        "the second stage trains on maps that are averaged over both mirrorings")  # fmt: skip
        yield from need(config.model.pair_stage != NO_PAIR_STAGE, "model.frozen", "False without a pair stage",
                        "there would be nothing to train")  # fmt: skip
        yield from need(bool(config.init_from), "init_from", "a workdir with model.frozen",
                        "set it to that of the network to freeze")  # fmt: skip
    if data.hard_pool:
        yield from need(
            frozen, "data.hard_pool", "0 without model.frozen", "look-alikes come from the frozen classifier"
        )
        yield from need(data.hard_pool >= data.num_ids - 1, "data.hard_pool", f"at least num_ids - 1, {data.num_ids - 1}",
                        "raise it")  # fmt: skip
    yield from need(data.images_per_id >= 2, "data.images_per_id", "at least 2",
                    "the triplet loss needs two images of an identity")  # fmt: skip
    yield from need(data.num_ids >= 2, "data.num_ids", "at least 2", "the triplet loss needs two identities")
    yield from need(config.optim.warmup_epochs < config.epochs, "optim.warmup_epochs",
                    f"less than config.epochs, {config.epochs}", "lower it or train longer")  # fmt: skip
    yield from need(evaluation.checkpoint != "best" or data.val_share > 0, "eval.checkpoint",
                    "'last' where no identities are held out",
                    "set config.data.val_share or config.eval.checkpoint=last")  # fmt: skip


def _own_fields(config: ConfigDict, source: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield mistakes in choices and in their additional fields."""
    checks = {
        "data.name": lambda name, fields: builder_class(name).complete_options(fields),
        "model.backbone": _check_backbone,
        "model.pair_stage": _check_pair_stage,
    }
    for choice, fields in CHOICES.items():
        name, check = lookup(config, choice), checks[choice]
        if error := _error(check, name, {}):
            yield choice, error if error.startswith("config.") else f"config.{choice}: {error}"
            continue
        for field, value in lookup(config, fields).items():
            if error := _error(check, name, {field: value}):
                where = source(f"{fields}.{field}")
                yield f"{fields}.{field}", f"config.{fields}.{field}: {error}" + (f" (set by {where})" if where else "")


def _check_backbone(name: str, fields: dict[str, Any]) -> None:
    backbones.check(name, fields)
    for field, remedy in {"dtype": "config.model.dtype", "axis_name": "config.devices"}.items():
        if field in fields:
            raise UserError(f"the network sets {field} of its backbone; leave it out and set {remedy}")


def _check_pair_stage(name: str, fields: dict[str, Any]) -> None:
    if name != NO_PAIR_STAGE:
        pair_stages.check(name, fields)
    elif fields:
        raise UserError(f"no pair stage, which has no fields; leave {', '.join(fields)} out")


def _error(check: Callable[[str, dict[str, Any]], Any], name: str, fields: dict[str, Any]) -> str:
    """Return the error message of a check, or an empty string if it passes."""
    try:
        check(name, fields)
    except UserError as error:
        return str(error)
    return ""
