"""Training loop. The maths is in train_step.py, the model in models/ and the ranking in retrieval/."""

import contextlib
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cacenet_jax import experiment
from cacenet_jax.data.builders import TEST_SPLITS, Prepared, open_split, prepare
from cacenet_jax.data.pipeline import training_batches
from cacenet_jax.data.sampler import PKSampler, look_alikes
from cacenet_jax.data.subsets import TrainVal, cut_validation
from cacenet_jax.distributed.device_map import (
    AXIS,
    DeviceMap,
    check_divisible,
    global_mesh,
    pick_devices,
    replicated_sharding,
)
from cacenet_jax.distributed.processes import broadcast_from_writer, check_same, is_writer, writer_first
from cacenet_jax.errors import UserError, writing
from cacenet_jax.evaluate import MIXES, check_splits, has_test_split, mean_embeddings, score, score_test, write_skipped
from cacenet_jax.experiment import Data, Experiment
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.run import alarms, compilation, initialisation, stopping
from cacenet_jax.run.checkpoints import Checkpoints
from cacenet_jax.run.choices import to_dict, with_eval_dataset
from cacenet_jax.run.completion import complete
from cacenet_jax.run.fingerprint import of_data, results_path
from cacenet_jax.run.metric_writer import MetricWriter, NullWriter, Progress
from cacenet_jax.run.validation import validate
from cacenet_jax.run.workdir import check_network, check_workdir, check_writable, claim_workdir, locked, recorded_data
from cacenet_jax.train_step import TrainState, create_state, make_train_step

# Data fields that may differ between the processes of a run: where each machine stores the data and how it reads them.
_OF_THE_MACHINE = ("root", "dir", "parts", "workers")
_PATIENCE_S = 10.0
LOSSES = ("loss", "identity", "triplet", "pair_identity", "pair_triplet", "evidence")  # names in metrics.jsonl


def prepare_data(data: Data, needs: Sequence[str]) -> Prepared:
    """Return the prepared data set with images in the splits `needs`, preparing it on first use."""
    with writer_first("prepare"):
        return prepare(
            data.name, root=data.root, data_dir=data.dir, options=data.options, progress=is_writer(), needs=needs,
            on_error=data.on_error,
        )  # fmt: skip


def check_same_config(config: ConfigDict) -> None:
    """Raise UserError if the processes of a run have different configs or jax versions."""
    shared = to_dict(config)
    shared["data"] = {name: value for name, value in shared["data"].items() if name not in _OF_THE_MACHINE}
    check_same("config", {"jax": jax.__version__, "config": shared})


def cut_training(data: Data, prepared: Prepared) -> TrainVal:
    """Split the training data into training and validation identities."""
    return cut_validation(open_split(prepared, "train"), data.val_share, data.val_seed, data.val_group)


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """Raise UserError if a metric is not finite; the message names the step and the metric."""
    broken = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"step {step}: found {', '.join(broken)}, expected finite numbers; training stopped and the last good "
            "checkpoint is kept; lower config.optim.learning_rate or set config.optim.clip_norm"
        )


def restore(settings: Experiment, net: CACENet, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    """Load the checkpoint selected by `evaluation.checkpoint` and return its step and state.

    At least one checkpoint must exist.
    """
    optimizer, image_size = settings.optimizer(1), settings.data.image_size
    like = jax.eval_shape(lambda key: create_state(net, optimizer, key, image_size), jax.random.key(0))
    sharding = replicated_sharding(global_mesh(settings.devices))
    return checkpoints.restore(like, sharding, best=settings.evaluation.checkpoint == "best")


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train and evaluate a network and write the results. Resumes if the workdir contains the same run.

    Args:
        config: config with every field of `cacenet_jax.config.paper`, as returned by the files in configs/.
        workdir: output folder for config.json, metrics.jsonl, tensorboard/, checkpoints/ and results.json.

    Returns:
        Contents of results.json: metrics of the individual, conditional and mixed rankings on the test split. Empty if
        the data have no test split, which are trained on but not ranked.

    Raises:
        UserError: a value is invalid, the data are broken, the workdir belongs to another run, or a metric is not
            finite.
    """
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    check_same_config(config)
    check_workdir(workdir, to_dict(config))
    with contextlib.ExitStack() as held, writing(workdir, Checkpoints(workdir).kept):
        return _train(config, workdir, held)


def _train(config: ConfigDict, workdir: Path, held: contextlib.ExitStack) -> dict[str, Any]:
    """Train with a complete and valid config; `held` keeps the lock of the workdir, which is taken once it is claimed."""
    # -- Config and devices -------------------------------------------------------------------------------------------
    is_new = not (workdir / "config.json").exists()
    if is_new:
        initialisation.check(config)
    settings = experiment.read(config)
    data, batch_size = settings.data, settings.data.batch_size
    devices = pick_devices(settings.devices)
    check_divisible(batch_size, len(devices))
    device_map = DeviceMap(devices, settings.parallel)
    device_map.connect()

    # -- Data ---------------------------------------------------------------------------------------------------------
    prepared = prepare_data(data, ("train",))
    is_ranked = has_test_split(prepared)
    cut = cut_training(data, prepared)
    check_splits(settings, prepared, cut)
    check_same("training data", cut.train.summary())
    sampler = PKSampler(cut.train.labels, data.num_ids, data.images_per_id, settings.seed)
    steps_per_epoch = sampler.steps_per_epoch
    last_step = settings.epochs * steps_per_epoch
    checkpoint_every = settings.checkpoint_every or steps_per_epoch
    validation_every = settings.eval_every * steps_per_epoch or last_step

    # -- Network, optimiser and training step -------------------------------------------------------------------------
    net = settings.network.build(cut.train.num_identities, AXIS)
    optimizer, learning_rate = settings.optimizer(steps_per_epoch), settings.learning_rate(steps_per_epoch)
    init_key, augment_key = jax.random.split(jax.random.key(settings.seed))
    step_fn = make_train_step(net, optimizer, settings.loss, settings.augmentation(), augment_key, axis_name=AXIS)
    mapped_step = compilation.warn_on_recompilation(device_map.map(step_fn))
    state = create_state(net, optimizer, init_key, data.image_size)

    # -- Initialisation or resumption ---------------------------------------------------------------------------------
    class_means = functools.partial(mean_embeddings, settings, net, subset=cut.train)
    if is_new:  # before the workdir is claimed, which would make a wrong config.init_from permanent
        state = initialisation.initialise(config, state, cut.train.summary(), class_means)
    held.enter_context(locked(workdir))
    claim_workdir(workdir, to_dict(config), cut.train.summary())
    checkpoints = Checkpoints(workdir, keep=settings.checkpoints_kept)
    first_step = 0
    if checkpoints.exist():
        first_step, state = checkpoints.restore(state, replicated_sharding(device_map.mesh))
        _say(f"continuing {workdir} from step {first_step} of {last_step}")
    elif not is_new:  # interrupted before the first checkpoint
        state = initialisation.initialise(config, state, cut.train.summary(), class_means)
    state = device_map.replicate(state)
    if data.hard_pool:  # from frozen parameters, so that a resumed run draws the same batches
        classifier = state.params["individual_head"]["classifier"]["kernel"].addressable_data(0)
        sampler.nearest = look_alikes(np.asarray(classifier), data.hard_pool)
    writer = MetricWriter(workdir, first_step) if is_writer() else NullWriter()
    progress = Progress(first_step, last_step, batch_size) if is_writer() else NullWriter()
    watch = alarms.Watch(net.alarms) if is_writer() else None
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    together = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    _say(
        f"{data.name}: {len(cut.train.indices)} images of {cut.train.num_identities} identities, "
        f"{steps_per_epoch} steps an epoch; {parameters:,} parameters; "
        f"{len(devices)} {devices[0].platform} device(s){together}"
    )

    if is_writer() and not is_ranked:
        logging.warning(
            "%s: found neither query nor gallery images; the run ends without a ranking and without results.json; rank "
            "images later with --mode=evaluate --config.data.root=FOLDER", data.name,
        )  # fmt: skip
        write_skipped(prepared, workdir / "results.json")

    # -- Training loop: metrics are fetched one step late, while the device computes the next step --------------------
    batches = training_batches(
        cut.train, sampler, height=data.height, width=data.width, first_step=first_step, last_step=last_step,
        workers=data.workers, process=jax.process_index(), processes=jax.process_count(),
        parts=settings.part_labels(),
    )  # fmt: skip

    def report(step: int, device_metrics: dict[str, jax.Array]) -> None:
        metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        check_finite(step, metrics)
        if watch:
            watch.check(step, metrics, lambda: state.params)
        if step % settings.log_every == 0 or step == last_step:
            shown = {name: metrics[name] for name in LOSSES if name in metrics}
            rate = progress.update(step, shown)
            writer.write(step, {**metrics, "learning_rate": float(learning_rate(step - 1)), "images_per_second": rate})

    def score_validation(step: int) -> float:
        result = score(settings, net, device_map.to_global(state), cut.query, cut.gallery, mixes=MIXES)
        _report_validation(writer, step, result)
        rankings = [result[name] for name in ("individual", "conditional", "mixed") if name in result]
        return broadcast_from_writer("validation", max(ranking["mAP"] for ranking in rankings))

    try:
        with stopping.obeyed(settings.grace_s, first_step + 1) as stop:
            pending: tuple[int, dict[str, jax.Array]] | None = None
            for step, batch in enumerate(batches, start=first_step + 1):
                state, device_metrics = mapped_step(state, device_map.split(batch))
                if pending:
                    report(*pending)
                pending = (step, device_metrics)
                stops = step < last_step and stop.before(step + 1)
                validates = data.val_share > 0 and (step == last_step or step % validation_every == 0)
                if validates or stops or step % checkpoint_every == 0 or step == last_step:
                    report(*pending)  # a state with non-finite metrics is never saved
                    pending = None
                    checkpoints.save(step, device_map.to_global(state), score_validation(step) if validates else None)
                if stops:
                    break
            checkpoints.close()
    finally:
        # After an error, other processes may have exited or be waiting, so a shared save may never complete.
        patience = _PATIENCE_S if sys.exc_info()[0] is not None else None
        with contextlib.ExitStack() as stack:  # all of them, also if the metrics cannot be written
            stack.callback(checkpoints.close, patience)
            for part in (batches, writer, progress):
                stack.callback(part.close)

    # -- Test split ---------------------------------------------------------------------------------------------------
    if not is_ranked:
        _say(
            f"{data.name}: trained to step {last_step}; not ranked, because there are neither query nor gallery images"
        )
        return {}
    if settings.evaluation.checkpoint == "best":
        checkpoints = Checkpoints(workdir, create=False)
        first_step, state = restore(settings, net, checkpoints)
        checkpoints.close()
    else:
        first_step, state = last_step, device_map.to_global(state)
    return score_test(settings, net, state, prepared, first_step, workdir / "results.json")


class Trained(NamedTuple):
    """Trained network and the data set of its config.

    Attributes:
        settings: settings read from the config.
        net: network.
        step: step of the checkpoint.
        state: network state at that step.
        prepared: prepared data set of config.data.
    """

    settings: Experiment
    net: CACENet
    step: int
    state: TrainState
    prepared: Prepared


def load(config: ConfigDict, workdir: str | Path) -> Trained:
    """Load the network of a workdir at the checkpoint selected by config.eval.checkpoint.

    Args:
        config: config of the run; eval fields and the data set may differ.
        workdir: workdir of a run with at least one checkpoint.

    Raises:
        UserError: there is no checkpoint, it does not match the config, or the data are broken.
    """
    net, step, state = load_network(config, workdir)
    settings = experiment.read(complete(config))
    prepared = prepare_data(settings.data, TEST_SPLITS)
    check_splits(settings, prepared)
    return Trained(settings, net, step, state, prepared)


def load_network(config: ConfigDict, workdir: str | Path) -> tuple[CACENet, int, TrainState]:
    """Load the network, step and state without the data set; arguments and errors are as in `load`."""
    workdir, config = Path(workdir).expanduser(), complete(config)
    validate(config)
    check_same_config(config)
    checkpoints = Checkpoints(workdir, create=False)
    settings = experiment.read(config)
    net = settings.network.build(checkpoints.num_identities())
    check_network(workdir, to_dict(config), net.scoring_fields)
    step, state = restore(settings, net, checkpoints)
    checkpoints.close()
    return net, step, state


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Evaluate the checkpoint of a workdir on the test split of config.data and write results.json.

    If config.eval.data is set, evaluate on that data set instead (cross-domain) and write results_NAME.json. Results of
    other data are not overwritten: the file then has the first digits of the data's hash in its name.

    Args:
        config: config of the run; eval fields may differ.
        workdir: workdir of a run with at least one checkpoint.

    Returns:
        Contents of the results file.

    Raises:
        UserError: there is no checkpoint, it does not match the config, or the data are broken.
    """
    name = f"results_{config.eval.data}" if config.eval.data else "results"
    folder = Path(workdir).expanduser()
    check_writable(folder)
    trained = load(with_eval_dataset(config), folder)
    path = results_path(folder, name, of_data(trained.prepared), bool(config.eval.data) or _is_own(trained, folder))
    if is_writer() and path.stem != name:
        logging.warning("these data are not those of %s.json; their results go to %s", folder / name, path)
    return score_test(trained.settings, trained.net, trained.state, trained.prepared, trained.step, path)


def _is_own(trained: Trained, folder: Path) -> bool:
    """Return False if the network was trained on other data than those of its config, or perhaps on others.

    Data without a train split are taken for those of the run unless it has results already. An imported network has no
    data of its own.
    """
    recorded = recorded_data(folder)
    if recorded is None or "imported" in recorded:
        return True
    if not len(open_split(trained.prepared, "train")):
        return not (folder / "results.json").exists()
    return recorded == cut_training(trained.settings.data, trained.prepared).train.summary()


def _report_validation(writer: MetricWriter | NullWriter, step: int, result: dict[str, Any]) -> None:
    scores = {
        f"val/{name}_mAP": result[name]["mAP"] for name in ("individual", "conditional", "mixed") if name in result
    }
    by_mix = result.get("mAP_by_mix", {})
    writer.write(step, scores | {f"val/mAP_mix_{mix}": value for mix, value in by_mix.items()})
    text = ", ".join(
        f"{name.removeprefix('val/').removesuffix('_mAP')} {100 * value:.1f}" for name, value in scores.items()
    )
    best = f"; best mix {max(by_mix, key=by_mix.get)}" if by_mix else ""
    _say(f"step {step}: validation mAP: {text}{best}")


def _say(text: str) -> None:
    if is_writer():
        print(text, flush=True)
