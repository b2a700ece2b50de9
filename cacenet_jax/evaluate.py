"""Evaluation of a trained network on query and gallery images. Connects settings, data, model and retrieval."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

from cacenet_jax.data.builders import SPLITS, TEST_SPLITS, Prepared, open_split
from cacenet_jax.data.pipeline import evaluation_batches
from cacenet_jax.data.subsets import Subset, TrainVal, all_records
from cacenet_jax.distributed.device_map import global_mesh
from cacenet_jax.distributed.processes import broadcast_from_writer, is_writer
from cacenet_jax.errors import UserError, printable
from cacenet_jax.experiment import Experiment
from cacenet_jax.models.cacenet import CACENet
from cacenet_jax.models.scoring import scoring
from cacenet_jax.retrieval.distances import DISTANCES
from cacenet_jax.retrieval.extract import extract, image_shapes, process_rows, round_up
from cacenet_jax.retrieval.metrics import MEAN_NAMES, check_rankable, evaluate_blocks
from cacenet_jax.retrieval.rankings import LabelledSet, Rescore, Settings, check_sizes, evaluate
from cacenet_jax.retrieval.rescore import Rescorer
from cacenet_jax.retrieval.results_table import table
from cacenet_jax.retrieval.term_store import Store, make_plan, memory_budget, replicate, tree_bytes
from cacenet_jax.retrieval.verification import line, verification
from cacenet_jax.run.fingerprint import fingerprint, keep_others
from cacenet_jax.run.workdir import write_json
from cacenet_jax.train_step import TrainState

_SAME = 1e-5  # difference of L2-normalised embeddings up to which they are the same
_CHUNK = 4096  # embeddings compared at a time
# Weights of the pair distance compared on validation data to choose config.eval.mix.
MIXES = tuple(round(0.1 * i, 1) for i in range(1, 10))


class Rankable(NamedTuple):
    """Arguments of `retrieval.rankings.evaluate`.

    Attributes:
        query: embeddings and labels of the query images.
        gallery: embeddings and labels of the gallery images.
        rescore: function from candidates to pair distances; None without a pair stage.
        settings: ranking options.
    """

    query: LabelledSet
    gallery: LabelledSet
    rescore: Rescore | None
    settings: Settings


def score(
    settings: Experiment, net: CACENet, state: TrainState, query: Subset, gallery: Subset, mixes: Sequence[float] = ()
) -> dict[str, Any]:
    """Compute the metrics of all rankings for one network state; see `retrieval.rankings.evaluate`.

    This is a collective operation: every process must call it with the same arguments, and all processes get the same
    result. A different state of the same network does not trigger recompilation.

    Args:
        settings: settings of the experiment.
        net: network.
        state: parameters and running statistics, either local to this process or replicated over all processes.
        query: query images.
        gallery: gallery images.
        mixes: additional weights of the pair distance to evaluate.

    Raises:
        UserError: there are no queries, no gallery images or no query with a match, an embedding is not finite, or
            there is too little space for the pair-stage terms.
    """
    rankable = describe(settings, net, state, query, gallery)
    result = evaluate(*rankable, mixes)
    if settings.evaluation.verification and not mixes:
        result["verification"] = _verification(rankable)
    return result


def _verification(rankable: Rankable) -> dict[str, float]:
    """Compute the verification metrics and the trapezoid form of mAP, both of the individual distance."""
    query, gallery, _, settings = rankable
    distance = DISTANCES[settings.distance]

    def rows(start: int, stop: int) -> np.ndarray:
        return distance(query.embedding[start:stop], gallery.embedding)

    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    result = verification(rows, *labels, camera_filter=settings.camera_filter)
    name = MEAN_NAMES["trapezoid"]
    metrics = evaluate_blocks(rows, *labels, camera_filter=settings.camera_filter, ap="trapezoid")
    return {**result, name: float(metrics[name])}


def describe(settings: Experiment, net: CACENet, state: TrainState, query: Subset, gallery: Subset) -> Rankable:
    """Extract the features for a ranking.

    This is a collective operation with the same arguments and errors as `score`. A warning is logged if all gallery
    images have the same embedding.
    """
    evaluation, data = settings.evaluation, settings.data
    num_query, num_gallery = len(query.indices), len(gallery.indices)
    check_sizes(num_query, num_gallery)
    mesh = global_mesh(settings.devices)
    batch = round_up(evaluation.batch_size, mesh)
    functions = scoring(net, evaluation.flip, evaluation.map_dtype, unit=evaluation.distance == "cosine")
    variables = replicate({"params": state.params, "batch_stats": state.batch_stats}, mesh)
    constants = functions.compose(variables) if functions.compose else None
    given, image_shape = (variables, constants), (*data.image_size, net.image_channels)
    like = image_shapes(functions.describe, given, image_shape).terms
    space = memory_budget(mesh, evaluation.device_gib, evaluation.memory_gib, data.dir)
    plan = make_plan(tree_bytes(like), num_query, num_gallery, batch, mesh, space)
    # Allocate both stores before computing anything, because this reserves the disk space.
    query_store, gallery_store = (
        Store(like, count, batch, mesh, plan.location, space.folder) if functions.distance else None
        for count in (num_query, num_gallery)
    )

    def features(subset: Subset, store: Store | None) -> LabelledSet:
        count = len(subset.indices)
        mine = subset._replace(indices=subset.indices[process_rows(count, batch, mesh)])
        size = {"height": data.height, "width": data.width, "parts": settings.part_labels()}
        size["batch_size"] = batch // mesh.size * len(mesh.local_devices)
        images = (images for images, _ in evaluation_batches(mine, **size))
        embedding = extract(
            functions.describe, given, images, count, image_shape=image_shape, batch=batch, mesh=mesh, store=store
        )
        _check_embeddings(embedding, subset, f"evaluation of step {int(state.step)}")
        return LabelledSet(embedding, np.asarray(subset.pids), np.asarray(subset.camids))

    query_set, gallery_set = features(query, query_store), features(gallery, gallery_store)
    _warn_if_constant(gallery_set.embedding, f"evaluation of step {int(state.step)}")
    rescore = None
    if functions.distance and query_store and gallery_store:
        rescore = Rescorer(functions.distance, constants, query_store, gallery_store, plan, evaluation.pairs_per_call)
    ranking = Settings(
        top_k=evaluation.top_k,
        camera_filter=evaluation.camera_filter,
        mix=evaluation.mix,
        distance=evaluation.distance,
        rerank=evaluation.rerank,
    )
    return Rankable(query_set, gallery_set, rescore, ranking)


def mean_embeddings(settings: Experiment, net: CACENet, state: TrainState, subset: Subset) -> Float[np.ndarray, "F I"]:
    """Compute the mean of the L2-normalised embeddings of each identity, one column per class.

    This is a collective operation: every process must call it with the same arguments, and all get the same result.

    Raises:
        UserError: an embedding is not finite.
    """
    evaluation, data = settings.evaluation, settings.data
    mesh = global_mesh(settings.devices)
    batch = round_up(evaluation.batch_size, mesh)
    functions = scoring(net, evaluation.flip, evaluation.map_dtype)
    variables = replicate({"params": state.params, "batch_stats": state.batch_stats}, mesh)
    given = (variables, functions.compose(variables) if functions.compose else None)
    mine = subset._replace(indices=subset.indices[process_rows(len(subset.indices), batch, mesh)])
    size = {"height": data.height, "width": data.width, "parts": settings.part_labels()}
    size["batch_size"] = batch // mesh.size * len(mesh.local_devices)
    embedding_nF = extract(
        functions.describe, given, (images for images, _ in evaluation_batches(mine, **size)), len(subset.indices),
        image_shape=(*data.image_size, net.image_channels), batch=batch, mesh=mesh, store=None,
    )  # fmt: skip
    _check_embeddings(embedding_nF, subset, "mean embeddings of the training identities")
    sums_IF = np.zeros((subset.num_identities, embedding_nF.shape[1]))
    np.add.at(sums_IF, subset.labels, embedding_nF)
    return (sums_IF / np.bincount(subset.labels)[:, None]).T


def _check_embeddings(embedding_nF: np.ndarray, subset: Subset, where: str) -> None:
    """Raise UserError if an embedding is not finite."""
    broken = np.flatnonzero(~np.isfinite(embedding_nF.sum(axis=1)))
    if broken.size:
        name = printable(subset.split.names[subset.indices[broken[0]]])
        raise UserError(
            f"{where}: found {broken.size} of {len(embedding_nF)} embeddings that are not finite, first that of {name}, "
            "expected numbers; check the network's parameters for NaN and inf, or evaluate an earlier checkpoint"
        )


def _warn_if_constant(gallery_GF: np.ndarray, where: str) -> None:
    """Log a warning if all gallery images have the same embedding."""
    chunks = (gallery_GF[start : start + _CHUNK] for start in range(0, len(gallery_GF), _CHUNK))
    if len(gallery_GF) > 1 and all(np.abs(chunk - gallery_GF[0]).max() <= _SAME for chunk in chunks) and is_writer():
        logging.warning(
            "%s: all %d gallery images have the same embedding, so that their order means nothing; train longer or with a "
            "lower config.optim.learning_rate, or evaluate another checkpoint",
            where, len(gallery_GF),
        )  # fmt: skip


def check_splits(settings: Experiment, prepared: Prepared, cut: TrainVal | None = None) -> None:
    """Raise UserError if the test split, if there is one, or the validation identities cannot be ranked.

    Also checks that the part labels are complete if the network needs them. Runs before training.
    """
    pairs = {}
    if has_test_split(prepared):
        pairs["test split"] = tuple(all_records(open_split(prepared, split)) for split in TEST_SPLITS)
    if cut is not None and len(cut.query.indices):
        pairs["validation split, cut from train by config.data.val_share"] = (cut.query, cut.gallery)
    for where, (query, gallery) in pairs.items():
        labels = (query.pids, gallery.pids, query.camids, gallery.camids)
        check_rankable(*labels, camera_filter=settings.evaluation.camera_filter, where=f"{settings.data.name}, {where}")
    if parts := settings.part_labels():
        splits = TEST_SPLITS if cut is None else SPLITS
        parts.check({split: open_split(prepared, split) for split in splits})


def has_test_split(prepared: Prepared) -> bool:
    """Return False for a data set that can be trained on but not ranked, which has neither query nor gallery."""
    return any(len(open_split(prepared, split)) for split in TEST_SPLITS)


def doubts(query: Subset, gallery: Subset, *, camera_filter: bool) -> list[str]:
    """Return reasons why scores on these labels mean little, whatever the network.

    Args:
        query: query images.
        gallery: gallery images.
        camera_filter: True if images of the query's identity and camera are left out of its ranking.
    """
    reasons = []
    if len(set(gallery.pids.tolist())) == 1:
        reasons.append("all gallery images show one identity, so that every ranking scores 100; add other people")
    if query.split.checksums is None or gallery.split.checksums is None:
        return reasons
    columns = zip(gallery.split.checksums[gallery.indices].tolist(), gallery.pids.tolist(), gallery.camids.tolist())
    cameras: dict[tuple[int, int], set[int]] = {}
    for checksum, pid, camid in columns:
        cameras.setdefault((checksum, pid), set()).add(camid)
    copies = 0
    columns = zip(query.split.checksums[query.indices].tolist(), query.pids.tolist(), query.camids.tolist())
    for checksum, pid, camid in columns:
        copies += bool(cameras.get((checksum, pid), set()) - ({camid} if camera_filter else set()))
    if copies:
        reasons.append(
            f"{copies} of {len(query.indices)} queries are in the gallery too, as matches of themselves that any network "
            "ranks first; take them out of the gallery, or keep config.eval.camera_filter on and correct the cameras"
        )
    return reasons


def score_test(
    settings: Experiment, net: CACENet, state: TrainState, prepared: Prepared, step: int, file: Path
) -> dict[str, Any]:
    """Score the test split and return the results, with their fingerprint, in every process.

    Process 0 also prints them as a table and writes them to `file`. Results of another fingerprint that are there are
    renamed, not overwritten.
    """
    start = time.monotonic()
    query, gallery = (all_records(open_split(prepared, split)) for split in TEST_SPLITS)
    result = score(settings, net, state, query, gallery)
    result |= {
        "data": settings.data.name,
        "options": dict(settings.data.options),
        "step": step,
        "mix": settings.evaluation.mix,
        "seconds": broadcast_from_writer("seconds", time.monotonic() - start),
    }
    result["skipped"] = len(prepared.skipped)
    result["fingerprint"] = fingerprint(prepared, state, settings.evaluation)
    if is_writer():
        keep_others(file, result["fingerprint"])
        print(
            f"\n{settings.data.name}, test split, step {step}, {result['seconds']:.0f} s\n{table(result)}", flush=True
        )
        if "verification" in result:
            print(line(result["verification"]), flush=True)
        for warning in doubts(query, gallery, camera_filter=settings.evaluation.camera_filter):
            logging.warning("%s: %s", settings.data.name, warning)
        write_skipped(prepared, file)
        write_json(file, result)
    return result


def write_skipped(prepared: Prepared, results: Path) -> None:
    """List the broken images that were left out, with the reasons, in skipped.json beside results.json.

    Results of other data, results_NAME.json, have a list skipped_NAME.json.
    """
    file = results.with_name(results.name.replace("results", "skipped", 1))
    if prepared.skipped:
        write_json(file, dict(prepared.skipped))
    else:
        file.unlink(missing_ok=True)
