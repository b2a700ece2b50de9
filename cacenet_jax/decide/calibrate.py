"""--mode=calibrate: probabilities and thresholds for the distances of a network, learnt from labelled images.

cacenet --mode=calibrate --workdir=W                          # on the identities that the run held out for validation
cacenet --mode=calibrate --workdir=W --images=MANIFEST.csv    # on one's own: path, identity, optional camera
cacenet --mode=calibrate --workdir=W --check=MANIFEST.csv     # how the stored calibration does on other people
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import experiment, retriever
from cacenet_jax.decide import labelled as labels
from cacenet_jax.decide import open_set
from cacenet_jax.decide.labelled import Labelled
from cacenet_jax.decide.pairs import Described, describe, measure
from cacenet_jax.errors import UserError
from cacenet_jax.export.calibration import check_place, write_calibration
from cacenet_jax.retrieval.calibration import PRIOR, RATE, Calibration, Curve, check_prior
from cacenet_jax.retrieval.calibration_fit import (
    RATES,
    Pairs,
    check_all,
    learn_curve,
    learn_search,
    split_identities,
    threshold_at,
)
from cacenet_jax.retriever import Retriever
from cacenet_jax.run.workdir import check_writable, recorded_data

_OWN = "name labelled photographs with --images=MANIFEST.csv (columns path, identity and, if known, camera)"
_FALSE_ANSWERS = 0.1  # share of searches for absent people that may be answered by someone, for the open-set test


def calibrate(
    config: ConfigDict | None, workdir: str, images: str | None, check: str | None, prior: float | None
) -> Calibration:
    """Learn a calibration and store it with the network, or check the stored one.

    Args:
        config: config of the run in the workdir; None for an export.
        workdir: workdir or export folder.
        images: manifest to learn from; None for the validation split of the run, or to check alone.
        check: manifest of other people to check the calibration on.
        prior: share of matching pairs that probabilities assume; 0.5 if None.

    Raises:
        UserError: there are no labelled images or too few people, scikit-learn is missing, or the folder cannot be
            written.
    """
    prior = check_prior(PRIOR if prior is None else prior)
    if jax.process_count() > 1:
        raise UserError(
            f"--mode=calibrate: found {jax.process_count()} processes, expected one; leave out --distributed"
        )
    check_place(workdir)
    check_writable(Path(workdir).expanduser())
    others = None if check is None else labels.read_manifest(check)
    reid = retriever.load(workdir, config=config)
    if others is None or images is not None:
        source = labels.read_manifest(images) if images is not None else _validation(config, Path(workdir).expanduser())
        calibration, described, pairs = learn(reid, source, prior)
        path = write_calibration(workdir, calibration)
        print("\n".join(report(calibration)), flush=True)
        print("\n".join(_open_set_of_halves(reid, described, pairs)), flush=True)
        print(f"{path}: used by --mode=compare and search, by Python, and carried by the next export", flush=True)
    elif reid.calibration is None:
        raise UserError(f"{workdir}: found no calibration to check, expected one; run --mode=calibrate first")
    else:
        calibration = reid.calibration
    if others is not None:
        print("\n".join(check_on(reid, calibration, others)), flush=True)
    return calibration


def learn(
    reid: Retriever, source: Labelled, prior: float = PRIOR
) -> tuple[Calibration, Described, Mapping[str, Pairs]]:
    """Learn the calibration of a network.

    Args:
        reid: the network.
        source: labelled images of people whom the network was not trained on.
        prior: share of matching pairs that probabilities assume.

    Returns:
        The calibration, and the features and distances that it was learnt from.

    Raises:
        UserError: there are too few people or pairs, or scikit-learn is missing.
    """
    fold_I = split_identities(int(source.pids_n.max()) + 1)
    described = describe(reid, source)
    pairs = measure(reid, described)
    curves = {kind: learn_curve(some, fold_I) for kind, some in pairs.items()}
    network, kind = reid.network, _search_kind(pairs)
    searches = open_set.search(reid, described, np.ones(len(described.labelled.pids_n), bool))
    search = None if searches is None else learn_search(kind, searches.absent_Q, searches.num_images)
    calibration = Calibration(
        source.name, len(fold_I), len(described.labelled.pids_n), _is_cross_camera(source), prior, curves, search,
        network.fingerprint, network.mix, network.flip,
    )  # fmt: skip
    return calibration, described, pairs


def report(calibration: Calibration) -> list[str]:
    """Return the lines that describe a calibration."""
    pairs = "of two cameras" if calibration.cross_camera else "of any cameras"
    lines = [
        f"calibration on {calibration.data}: {calibration.num_identities:,} people, {calibration.num_images:,} images; "
        f"matching pairs {pairs}; probabilities assume that {100 * calibration.prior:g} % of the pairs match"
    ]
    for kind, curve in calibration.curves.items():
        lines += _curve_lines(kind, curve)
    return lines


def check_on(reid: Retriever, calibration: Calibration, others: Labelled) -> list[str]:
    """Check a calibration on people whom it was not learnt from.

    Args:
        reid: the network.
        calibration: its calibration.
        others: labelled images.

    Returns:
        Lines to print.

    Raises:
        UserError: there are no matching pairs.
    """
    described = describe(reid, others)
    checks = check_all(calibration.curves, measure(reid, described))
    lines = [f"check on {others.name}: {len(np.unique(described.labelled.pids_n)):,} people"]
    lines += [f"  {kind}: {_check_words(check)}" for kind, check in checks.items()]
    searches = open_set.search(reid, described, np.ones(len(described.labelled.pids_n), bool))
    if searches is not None:
        kind = calibration.search_kind
        strict = calibration.search_threshold(kind, searches.num_images, _FALSE_ANSWERS)
        lines += _open_set_lines(kind, [(searches, calibration.threshold(kind), strict)])
    return lines


def _validation(config: ConfigDict | None, workdir: Path) -> Labelled:
    """Return the images that the run of a workdir held out for validation."""
    if config is None:
        raise UserError(f"--images: not given, expected labelled photographs for a network without a run; {_OWN}")
    settings = experiment.read(config)
    recorded = recorded_data(workdir) or {}
    if "imported" in recorded:
        raise UserError(
            f"--images: not given, expected labelled photographs for an imported network, whose training people are not "
            f"known; {_OWN}"
        )
    if not settings.data.val_share:
        raise UserError(
            f"config.data.val_share: found 0, expected people held out from training to calibrate on; {_OWN}"
        )
    from cacenet_jax.train import cut_training, prepare_data  # reads data sets, which an own manifest does not need

    cut = cut_training(settings.data, prepare_data(settings.data, ("train",)))
    if cut.train.summary() != recorded:
        raise UserError(
            f"config.data: found other training images than those of the run ({workdir / 'data.json'}), expected its own, "
            f"without which nobody is known to be held out; restore the data set, or {_OWN}"
        )
    data = settings.data
    return labels.of_validation(cut, data.image_size, data.name, settings.evaluation.camera_filter)


def _is_cross_camera(source: Labelled) -> bool:
    return source.is_cross_camera and bool((source.camids_n >= 0).all())


def _search_kind(pairs: Mapping[str, Pairs]) -> str:
    return "mixed" if "mixed" in pairs else "individual"


def _curve_lines(kind: str, curve: Curve) -> Iterator[str]:
    losses = "; ".join(f"{name} {loss:.4f}" for name, loss in curve.log_loss.items())
    yield (
        f"{kind}: {curve.num_matching:,} matching and {curve.num_other:,} other pairs; {curve.method} probability "
        f"(log loss on people not used to fit: {losses})"
    )
    known = {threshold.rate: threshold for threshold in curve.thresholds}
    for rate in RATES:
        if rate not in known:
            needed = round(10 / rate)
            yield f"  false-match rate {rate:g}: not known from {curve.num_other:,} other pairs; {needed:,} are needed"
            continue
        threshold = known[rate]
        yield (
            f"  false-match rate {rate:g}: distance below {threshold.distance:.4f} (95 % interval {threshold.low:.4f} to "
            f"{threshold.high:.4f}), {100 * threshold.match_rate:.1f} % of the matching pairs"
        )
    yield f"  people not used to fit: {_check_words(curve.check)}"


def _check_words(check: object) -> str:
    error, false, matching = (getattr(check, x) for x in ("calibration_error", "false_match_rate", "match_rate"))
    return (
        f"expected calibration error {error:.4f}; false-match rate {false:.4f} where {RATE:g} was asked, with "
        f"{100 * matching:.1f} % of the matching pairs"
    )


def _open_set_of_halves(reid: Retriever, described: Described, pairs: Mapping[str, Pairs]) -> list[str]:
    """Search within each half of the identities, with the thresholds of the other half."""
    kind, pids_n = _search_kind(pairs), described.labelled.pids_n
    some = pairs[kind]
    half_I = np.random.default_rng(1).permutation(np.arange(int(pids_n.max()) + 1) % 2)
    halves = [open_set.search(reid, described, half_I[pids_n] == half) for half in (0, 1)]
    results = []
    for half, (searches, others) in enumerate(zip(halves, reversed(halves))):
        is_used_P = (half_I[some.first_P] != half) & (half_I[some.second_P] != half) & ~some.same_P
        if searches is not None and others is not None and is_used_P.any():
            plain = threshold_at(np.sort(some.distance_P[is_used_P].astype(np.float64)), RATE)
            learnt = learn_search(kind, others.absent_Q, others.num_images)
            results.append((searches, plain, learnt.threshold(searches.num_images, _FALSE_ANSWERS)))
    return _open_set_lines(kind, results)


def _open_set_lines(kind: str, results: list[tuple[open_set.Searches, float, float | None]]) -> list[str]:
    """Describe searches with the threshold of a pair, and with the stricter one of a search."""
    if not results:
        return []
    weights = [len(searches.absent_Q) for searches, *_ in results]
    sizes = sorted({searches.num_images for searches, *_ in results})
    among = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    lines = [
        f"open set, {kind} distance: {sum(weights):,} queries of people not used to fit, each among {among} images"
    ]
    plain = [(searches, threshold) for searches, threshold, _ in results]
    strict = [(searches, threshold) for searches, _, threshold in results if threshold is not None]
    for words, rows in (
        (f"threshold for a false-match rate of {RATE:g}", plain),
        (f"threshold for {_FALSE_ANSWERS:.0%} false answers a search", strict),
    ):
        if len(rows) < len(results):
            lines.append(f"  {words}: not known from so few searches")
            continue
        unknown = np.average([searches.unknown(limit) for searches, limit in rows], weights=weights)
        right = np.average([searches.found_right(limit) for searches, limit in rows], weights=weights)
        best = np.average([searches.found_right(np.inf) for searches, _ in rows], weights=weights)
        lines.append(
            f"  {words}: {100 * unknown:.1f} % of absent people answered unknown; {100 * right:.1f} % of people who are "
            f"there found ({100 * best:.1f} % without a threshold)"
        )
    return lines
