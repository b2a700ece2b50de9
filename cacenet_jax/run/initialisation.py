"""Initialisation of a run from published backbone weights or from the network of another workdir."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.distributed.device_map import global_mesh, replicated_sharding
from cacenet_jax.distributed.processes import is_writer, writer_first
from cacenet_jax.errors import UserError
from cacenet_jax.models.cacenet import INDIVIDUAL_PARAMETERS
from cacenet_jax.pretrained import backbone
from cacenet_jax.pretrained.matching import MatchedWeights, Mismatches, listed
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict
from cacenet_jax.run.records import differences, effective
from cacenet_jax.run.workdir import recorded_config, recorded_data
from cacenet_jax.train_step import TrainState

# Prefixes of fields that change the feature maps or f(I) of a frozen network, even if no parameter changes its shape;
# data.options are compared separately.
_OF_WHAT_IS_KEPT = ("model.backbone", "model.backbone_fields.", "model.pooling")
# Classifier that some pair stages add to the individual head; other networks lack it.
_PAIR_CLASSIFIER = "pair_classifier"
_CHECKED = "data.options.check_counts"  # does not affect the records
# Derived data set -> source data set. A network trained on one may have seen identities of the other.
_MADE_OF = {"occluded_dukemtmc": "dukemtmc_reid"}


def check(config: ConfigDict) -> None:
    """Check the initial weights of a run, before data are prepared and anything is compiled.

    Raises:
        UserError: config.init_from has no checkpoints, or config.pretrained is missing or does not match the backbone.
    """
    if config.init_from:
        _need_checkpoints(Path(config.init_from))
    if config.pretrained:
        like = backbone.shapes(experiment.read(config).network.build_backbone(), config.data.height, config.data.width)
        _read_weights(config, like)


def initialise(
    config: ConfigDict, state: TrainState, data: dict[str, Any], class_means: Callable[[TrainState], np.ndarray]
) -> TrainState:
    """Return a state with parameters loaded from config.init_from or config.pretrained, if either is set.

    Args:
        config: config of this run.
        state: randomly initialised state.
        data: summary of the training data (`Subset.summary`).
        class_means: function from a state to the mean embeddings of the training identities, (F, I). They become the
            classifier of a frozen network that was trained on other identities, whose own classifier is of no use here.

    Raises:
        UserError: the source is missing, does not match, or was trained on this run's validation identities.
    """
    if config.init_from:
        return _from_run(config, state, data, class_means)
    if config.pretrained:
        return _from_weights(config, state)
    return state


# -- Published weights of the backbone ---------------------------------------------------------------------------------


def _read_weights(config: ConfigDict, like: dict[str, Any]) -> MatchedWeights:
    with writer_first("pretrained"):  # only one process downloads
        network = experiment.read(config).network.build_backbone()
        return backbone.load(config.pretrained, network, like, config.model.backbone)


def _from_weights(config: ConfigDict, state: TrainState) -> TrainState:
    collections = {"params": state.params, "batch_stats": state.batch_stats}
    fitted = _read_weights(config, {name: tree["backbone"] for name, tree in collections.items() if "backbone" in tree})
    variables = jax.tree.map(jnp.asarray, fitted.variables)
    new = {name: tree | {"backbone": variables[name]} for name, tree in collections.items() if name in variables}
    left_out = f"; left out: {listed(_grouped(fitted.ignored))}" if fitted.ignored else ""
    added = f"; not in the file, new: {listed(_grouped(fitted.added))}" if fitted.added else ""
    _say(f"starting from {config.pretrained}: {fitted.num_loaded} arrays of {config.model.backbone}{added}{left_out}")
    return dataclasses.replace(state, **new)


def _grouped(names: list[str]) -> list[str]:
    """Count names by their first part, except counters by their last: `fc (2)`, `num_batches_tracked (53)`."""
    kinds = [name.rpartition(".")[2] if name.endswith("num_batches_tracked") else name.split(".")[0] for name in names]
    return [f"{kind} ({kinds.count(kind)})" for kind in dict.fromkeys(kinds)]


# -- Network of another workdir ----------------------------------------------------------------------------------------


def check_source(workdir: Path, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Check that a run with this config and training data may start from the network in a workdir.

    A frozen network must have this run's backbone and pooling. If this run holds out validation identities, then neither
    that network nor the networks that it was initialised from may have been trained on other identities of the same data
    set.

    Args:
        workdir: workdir of the network.
        config: nested dictionary of this run's config.
        data: summary of this run's training data (`Subset.summary`).

    Raises:
        UserError: there are no checkpoints, or the network violates these conditions.
    """
    _need_checkpoints(workdir)
    if config["model"]["frozen"]:
        changed = differences(recorded_config(workdir) or {}, config)
        other = [d for d in changed if d.split(":")[0].startswith(_OF_WHAT_IS_KEPT)]
        if other:
            raise UserError(
                f"config.init_from: found {workdir}, a network of another kind ({'; '.join(other)}), expected this run's "
                "backbone and pooling; name another workdir, or take its config.model fields"
            )
    if config["data"]["val_share"] > 0:
        for folder in _lineage(workdir):
            name = _fields(folder)["data.name"]
            other = _other_data(folder, config, data)
            if _origin(name) == _origin(config["data"]["name"]) and other:
                raise UserError(
                    f"config.init_from: found {folder}, trained on other people of {name} ({'; '.join(other)}), among them "
                    "perhaps this run's validation identities, expected the same training identities or another data set; "
                    "take its config.data.val_share, val_seed and val_group, or set config.data.val_share=0"
                )


def _need_checkpoints(workdir: Path) -> None:
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"config.init_from: found no checkpoints in {workdir}, expected some; train that network first")


def _fields(workdir: Path) -> dict[str, Any]:
    """Return the dotted fields of the run in a workdir, with defaults for unrecorded fields."""
    return effective(recorded_config(workdir) or {})


def _origin(name: str) -> str:
    return _MADE_OF.get(name, name)


def _other_data(workdir: Path, config: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Return the differences between a workdir's training data and this run's, empty if they are the same."""
    fields = [(d, d.split(":")[0]) for d in differences(recorded_config(workdir) or {}, config)]
    other = [d for d, f in fields if f == "data.name" or (f.startswith("data.options.") and f != _CHECKED)]
    recorded, data = recorded_data(workdir), {key: value for key, value in data.items() if key != "pixels"}
    if recorded is not None and {key: recorded.get(key) for key in data} != data:
        other.append(f"training data: {recorded} -> {data}")
    return other


def _lineage(workdir: Path) -> Iterator[Path]:
    """Yield a workdir, the workdir that its run was initialised from, and so on, as long as they exist."""
    seen: set[Path] = set()
    while (workdir / "config.json").exists() and workdir.resolve() not in seen:
        seen.add(workdir.resolve())
        yield workdir
        before = _fields(workdir)["init_from"]
        if not before:
            return
        workdir = Path(before)


class _Taken(NamedTuple):
    """Collection of variables filled from another network; path components are joined by '/'."""

    tree: dict[str, Any]
    parts: list[str]  # top-level modules in both networks
    new: list[str]
    unused: list[str]
    misfits: Mismatches


def _take(ours: Any, theirs: Any, same_people: bool, frozen: bool) -> _Taken:
    """Copy the variables that both networks have; classifiers of other identities keep their initial values."""
    ours_flat, theirs_flat = traverse_util.flatten_dict(ours), traverse_util.flatten_dict(theirs)
    parts = [name for name in ours if name in theirs]
    new = [name for name in ours if name not in theirs]
    misfits = Mismatches([], [], [], [])
    tree = dict(ours_flat)
    for path, x in ours_flat.items():
        name = "/".join(path)
        is_classifier = "classifier" in path or _PAIR_CLASSIFIER in path
        if path[0] not in theirs:
            if path[0] in (INDIVIDUAL_PARAMETERS if frozen else ("backbone",)):
                misfits.missing.append(name)
            continue
        if path not in theirs_flat and _PAIR_CLASSIFIER in path:
            new.append(name.rpartition("/")[0])
        elif path not in theirs_flat:
            misfits.missing.append(name)
        elif is_classifier and (not same_people or theirs_flat[path].shape != x.shape):
            there, here = theirs_flat[path].shape[-1], x.shape[-1]
            new.append(f"{name.rpartition('/')[0]} ({there} identities there, {here} here)")
        elif theirs_flat[path].shape != x.shape:
            misfits.shapes.append((name, theirs_flat[path].shape, x.shape))
        else:
            tree[path] = theirs_flat[path]
    unused = [name for name in theirs if name not in ours]
    for path in theirs_flat:
        if path[0] in ours and path not in ours_flat:
            name = "/".join(path)
            if _PAIR_CLASSIFIER in path:
                unused.append(name.rpartition("/")[0])
            else:
                misfits.unexpected.append(name)
    return _Taken(traverse_util.unflatten_dict(tree), parts, new, unused, misfits)


def _from_run(
    config: ConfigDict, state: TrainState, data: dict[str, Any], class_means: Callable[[TrainState], np.ndarray]
) -> TrainState:
    folder, plain = Path(config.init_from), to_dict(config)
    check_source(folder, plain, data)
    checkpoints = Checkpoints(folder, create=False)
    step, params, batch_stats = checkpoints.restore_parameters(replicated_sharding(global_mesh(config.devices)))
    same_people = not _other_data(folder, plain, data)
    taken = _take(state.params, params, same_people, config.model.frozen)
    statistics = _take(state.batch_stats, batch_stats, same_people, config.model.frozen)
    first, second = taken.misfits, statistics.misfits
    misfits = Mismatches(
        first.missing + second.missing,
        first.unexpected + second.unexpected,
        first.shapes + second.shapes,
        first.broken + second.broken,
    )
    if misfits.summary():
        fields = [d for d in differences(recorded_config(folder) or {}, plain) if d.startswith("model.")]
        because = f"; its config differs in {'; '.join(fields)}" if fields else ""
        raise UserError(
            f"config.init_from: found {folder}, which does not fit this network ({misfits.summary()}{because}), expected "
            "the same config.model; take its fields, or name another workdir\n"
            + "\n".join(misfits.lines(str(folder), "this network"))
        )
    new = f"; new: {', '.join(taken.new)}" if taken.new else ""
    unused = f"; not used: {', '.join(taken.unused)}" if taken.unused else ""
    _say(f"starting from {folder}, step {step}: {', '.join(taken.parts)}{new}{unused}")
    state = dataclasses.replace(state, params=taken.tree, batch_stats=statistics.tree)
    if config.model.frozen and not same_people:
        head = state.params["individual_head"]
        means_FI = jnp.asarray(class_means(state), head["classifier"]["kernel"].dtype)
        head = head | {"classifier": head["classifier"] | {"kernel": means_FI}}
        state = dataclasses.replace(state, params=state.params | {"individual_head": head})
        _say("the frozen network was trained on other identities; its classifier is their mean embeddings here")
    return state


def _say(text: str) -> None:
    if is_writer():
        print(text, flush=True)
