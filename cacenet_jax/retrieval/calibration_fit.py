"""Calibration of distances from labelled pairs, with scikit-learn.

The probability is a logistic function of the distance or an isotonic (monotone) one. Both are fitted to all folds of
identities but one and scored on the pairs within the fold left out; the one with the lower log loss is then fitted to
all pairs. In every fit both classes have the same weight, so that the number of pairs of each does not matter.

The expected calibration error is the mean over 15 bins of equal width, weighted by the number of pairs at equal shares, of
the absolute difference between the probability and the share of matching pairs (Guo et al. 2017,
https://arxiv.org/abs/1706.04599).

Legend: P pairs, Q searches, I identities, S points of a curve, B steps of an isotonic function.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval.calibration import RATE, Check, Curve, Search, Threshold

RATES = (1e-3, 1e-2, 1e-1)
METHODS = ("logistic", "isotonic")
_FOLDS = 5
_MIN_BELOW = 10  # pairs of different people below a threshold, for its rate to mean something
_POINTS = 40  # of the curve of false-match rates
_BINS = 15
_RESAMPLES = 200
_INTERVAL = (2.5, 97.5)  # per cent


class Pairs(NamedTuple):
    """Labelled pairs of images.

    Attributes:
        distance_P: distances.
        same_P: True for matching pairs.
        first_P: identity of the first image, 0 to I - 1.
        second_P: identity of the second image.
    """

    distance_P: Float[np.ndarray, "P"]
    same_P: Bool[np.ndarray, "P"]
    first_P: Int[np.ndarray, "P"]
    second_P: Int[np.ndarray, "P"]

    def where(self, chosen_P: Bool[np.ndarray, "P"]) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(*(column[chosen_P] for column in self))


class Points(NamedTuple):
    """Log odds of a match, interpolated between points.

    Attributes:
        distances_S: distances, ascending.
        log_odds_S: log odds at equal shares, not increasing.
    """

    distances_S: np.ndarray
    log_odds_S: np.ndarray

    def probability(self, distance_P: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
        """Compute the probability of a match at equal shares."""
        return 1 / (1 + np.exp(-np.interp(distance_P, *self)))


def split_identities(count: int, seed: int = 0) -> Int[np.ndarray, "I"]:
    """Return the fold of each identity.

    Raises:
        UserError: there are fewer than four identities, too few for two folds with pairs of different people.
    """
    if count < 4:
        raise UserError(
            f"calibration: found {count} identities, expected at least 4, better 50; add labelled "
            "images of other people, or train with a larger config.data.val_share"
        )
    fold_I = np.arange(count) % min(_FOLDS, count // 2)
    return np.random.default_rng(seed).permutation(fold_I)


def learn_curve(pairs: Pairs, fold_I: Int[np.ndarray, "I"]) -> Curve:
    """Learn the calibration of one distance.

    Args:
        pairs: labelled pairs.
        fold_I: fold of each identity, from `split_identities`.

    Raises:
        UserError: scikit-learn is missing, or no fold has pairs of both classes.
    """
    pairs = pairs._replace(distance_P=pairs.distance_P.astype(np.float64))
    held_out: list[Pairs] = []
    predicted: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    below: list[np.ndarray] = []
    for fold in range(fold_I.max() + 1):
        inside = (fold_I[pairs.first_P] == fold).astype(int) + (fold_I[pairs.second_P] == fold)
        used, held = pairs.where(inside == 0), pairs.where(inside == 2)
        if not all(part.same_P.any() and not part.same_P.all() for part in (used, held)):
            continue
        held_out.append(held)
        for method in METHODS:
            predicted[method].append(fit(method, used).probability(held.distance_P))
        limit = threshold_at(np.sort(used.distance_P[~used.same_P]), RATE)
        below.append(held.distance_P < limit)
    if not held_out:
        raise UserError(
            "calibration: found no group of identities with both matching and other pairs, expected images of each person "
            "from two cameras; add labelled images"
        )
    same_P = np.concatenate([held.same_P for held in held_out])
    below_P = np.concatenate(below)
    probability = {method: np.concatenate(parts) for method, parts in predicted.items()}
    losses = {method: log_loss(probability[method], same_P) for method in METHODS}
    method = min(METHODS, key=losses.__getitem__)
    error = calibration_error(probability[method], same_P)
    check = Check(error, float(below_P[~same_P].mean()), float(below_P[same_P].mean()))
    points = fit(method, pairs)

    matching, other = pairs.where(pairs.same_P), pairs.where(~pairs.same_P)
    other_P = np.sort(other.distance_P)
    rates, floor = _rates(len(other_P)), min(_MIN_BELOW / len(other_P), 1.0)
    supported = [rate for rate in RATES if rate >= floor]
    thresholds = []
    for rate, (low, high) in zip(supported, intervals(other, supported, len(fold_I))):
        limit = threshold_at(other_P, rate)
        thresholds.append(Threshold(rate, limit, low, high, float((matching.distance_P < limit).mean())))
    return Curve(
        method, losses, tuple(points.distances_S.tolist()), tuple(points.log_odds_S.tolist()), tuple(rates.tolist()),
        tuple(threshold_at(other_P, rate) for rate in rates), tuple(thresholds), len(matching.same_P), len(other_P),
        check,
    )  # fmt: skip


def learn_search(kind: str, absent_Q: Float[np.ndarray, "Q"], num_images: int) -> Search:
    """Describe searches for absent people.

    Args:
        kind: name of the distance.
        absent_Q: distance of the best image of each search.
        num_images: number of images in each search.
    """
    best_Q, rates = np.sort(absent_Q.astype(np.float64)), _rates(len(absent_Q))
    limits = tuple(threshold_at(best_Q, rate) for rate in rates)
    return Search(kind, num_images, len(best_Q), tuple(rates.tolist()), limits)


def _rates(count: int) -> Float[np.ndarray, "S"]:
    """Return the shares that a number of pairs or searches allows, with the usual ones among them."""
    floor = min(_MIN_BELOW / count, 1.0)
    return np.unique(np.r_[np.geomspace(floor, 1, _POINTS), [rate for rate in RATES if rate >= floor]])


def fit(method: str, pairs: Pairs) -> Points:
    """Fit the log odds of a match to pairs with one of `METHODS`.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.isotonic import IsotonicRegression
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(
            "--mode=calibrate needs scikit-learn, which is not installed; pip install 'cacenet_jax[index]'"
        ) from error
    distance_P, same_P = pairs.distance_P, pairs.same_P
    weight_P = _equal_shares(same_P) * len(same_P)
    if method == "logistic":
        middle, spread = distance_P.mean(), max(distance_P.std(), 1e-12)
        model = LogisticRegression().fit(((distance_P - middle) / spread)[:, None], same_P, weight_P)
        slope = min(float(model.coef_[0, 0]) / spread, 0.0)  # a network that separates nothing has no other sign
        ends = np.array([distance_P.min(), max(distance_P.max(), distance_P.min() + 1e-9)])
        return Points(ends, float(model.intercept_[0]) * (slope < 0) + slope * (ends - middle))
    steps_P = IsotonicRegression(increasing=False).fit(distance_P, same_P, weight_P).predict(distance_P)
    # Steps of few pairs, such as those at both ends, would be certain: half a pair of each class is added to every step
    # (Jeffreys), and the steps are put in order again.
    order_P = np.argsort(distance_P, kind="stable")
    start_B = np.flatnonzero(np.r_[True, np.diff(steps_P[order_P]) != 0])
    end_B = np.r_[start_B[1:], len(order_P)] - 1
    matching_B = np.add.reduceat(same_P[order_P].astype(float), start_B)
    other_B = end_B - start_B + 1 - matching_B
    matching_B, other_B = (x + 0.5 for x in (matching_B, other_B))
    matching_B, other_B = matching_B / matching_B.sum(), other_B / other_B.sum()
    share_B = matching_B / (matching_B + other_B)
    share_B = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(share_B)), share_B, sample_weight=matching_B + other_B
    )
    ends_S = np.concatenate([distance_P[order_P[start_B]], distance_P[order_P[end_B]]])
    distances_S, first_S = np.unique(ends_S, return_index=True)
    share_S = np.minimum.accumulate(np.concatenate([share_B, share_B])[first_S])
    return Points(distances_S, np.log(share_S / (1 - share_S)))


def threshold_at(other_P: Float[np.ndarray, "P"], rate: float) -> float:
    """Return the largest distance below which at most a share `rate` of the ascending distances lies."""
    return float(other_P[min(int(rate * len(other_P) + 1e-9), len(other_P) - 1)])


def intervals(other: Pairs, rates: list[float], count: int, seed: int = 0) -> list[tuple[float, float]]:
    """Compute 95 % confidence intervals of thresholds by a bootstrap over identities.

    Identities are drawn with replacement; a pair of two people counts as often as the product of their draws.

    Args:
        other: pairs of different people.
        rates: false-match rates.
        count: I.
        seed: seed of the draws.
    """
    random, order_P = np.random.default_rng(seed), np.argsort(other.distance_P, kind="stable")
    distance_P, first_P, second_P = (x[order_P] for x in (other.distance_P, other.first_P, other.second_P))
    limits = []
    for _ in range(_RESAMPLES):
        draws_I = np.bincount(random.integers(0, count, count), minlength=count)
        sums_P = np.cumsum(draws_I[first_P] * draws_I[second_P])
        if sums_P[-1]:
            index = np.searchsorted(sums_P, np.asarray(rates) * sums_P[-1], side="right")
            limits.append(distance_P[np.minimum(index, len(distance_P) - 1)])
    if not limits:
        return [(float(distance_P[0]), float(distance_P[-1]))] * len(rates)
    return [tuple(float(x) for x in np.percentile(column, _INTERVAL)) for column in np.transpose(limits)]  # type: ignore[misc]


def check_curve(curve: Curve, pairs: Pairs) -> Check:
    """Compute how a calibration behaves on other pairs."""
    distance_P = pairs.distance_P.astype(np.float64)
    probability_P = Points(np.array(curve.distances), np.array(curve.log_odds)).probability(distance_P)
    below_P = distance_P < float(np.interp(np.log(RATE), np.log(curve.rates), curve.rate_distances))
    error = calibration_error(probability_P, pairs.same_P)
    return Check(error, float(below_P[~pairs.same_P].mean()), float(below_P[pairs.same_P].mean()))


def calibration_error(probability_P: Float[np.ndarray, "P"], same_P: Bool[np.ndarray, "P"]) -> float:
    """Compute the expected calibration error at equal shares."""
    bin_P = np.minimum((probability_P * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bin_P, _equal_shares(same_P) * (probability_P - same_P), minlength=_BINS)
    return float(np.abs(gaps).sum())


def log_loss(probability_P: Float[np.ndarray, "P"], same_P: Bool[np.ndarray, "P"]) -> float:
    """Compute the mean negative log likelihood at equal shares."""
    likelihood_P = np.where(same_P, probability_P, 1 - probability_P).clip(1e-12)
    return float(-(_equal_shares(same_P) * np.log(likelihood_P)).sum())


def _equal_shares(same_P: Bool[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """Return weights that sum to 1, one half for each class."""
    matching = max(int(same_P.sum()), 1)
    return np.where(same_P, 0.5 / matching, 0.5 / max(len(same_P) - matching, 1))


def check_all(curves: Mapping[str, Curve], pairs: Mapping[str, Pairs]) -> dict[str, Check]:
    """Compute `check_curve` of each distance."""
    return {kind: check_curve(curves[kind], pairs[kind]) for kind in curves if kind in pairs}
