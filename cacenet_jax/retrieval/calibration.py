"""Distances as decisions: the probability that two images show one person, and thresholds at false-match rates.

A pair of images matches if both show one person. The false-match rate of a threshold is the share of pairs of different
people whose distance lies below it, over pairs drawn at random: a look-alike is as rare among them as it is at hand.

The probability holds for a stated share of matching pairs (the prior). It is stored for equal shares, and Bayes' rule
moves it to another one: the odds are multiplied by share / (1 - share).

`calibration_fit.py` learns a calibration; this module applies one and needs NumPy alone.

Legend: P pairs, S points of a curve.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cacenet_jax.errors import UserError

KINDS = ("individual", "pair", "mixed")
RATE = 1e-2  # default false-match rate
PRIOR = 0.5  # default share of matching pairs
_NO_KIND = "calibrate a network that has it, or ask for another"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Threshold at a false-match rate.

    Attributes:
        rate: false-match rate that was asked for.
        distance: largest distance below which at most this share of the pairs of different people lies.
        low: lower end of the 95 % confidence interval of `distance`, from a bootstrap over identities.
        high: its upper end.
        match_rate: share of the matching pairs below the threshold.
    """

    rate: float
    distance: float
    low: float
    high: float
    match_rate: float


@dataclasses.dataclass(frozen=True)
class Check:
    """Behaviour on identities that were not used to learn it.

    Attributes:
        calibration_error: expected calibration error of the probability at equal shares (`calibration_fit`).
        false_match_rate: share of the pairs of different people below the threshold at the rate 1e-2.
        match_rate: share of the matching pairs below it.
    """

    calibration_error: float
    false_match_rate: float
    match_rate: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Calibration of one distance.

    Attributes:
        method: "logistic" or "isotonic", the one with the lower log loss on identities that were not used to fit.
        log_loss: that loss of each method, at equal shares.
        distances: distances of the S points, ascending; the probability is interpolated between them.
        log_odds: logarithm of the odds of a match at each point, at equal shares, not increasing.
        rates: false-match rates, ascending.
        rate_distances: largest distance below which at most each of `rates` lies.
        thresholds: thresholds at the usual rates, those that the number of pairs allows.
        num_matching: number of matching pairs.
        num_other: number of pairs of different people.
        check: behaviour on identities that were not used.
    """

    method: str
    log_loss: Mapping[str, float]
    distances: tuple[float, ...]
    log_odds: tuple[float, ...]
    rates: tuple[float, ...]
    rate_distances: tuple[float, ...]
    thresholds: tuple[Threshold, ...]
    num_matching: int
    num_other: int
    check: Check


@dataclasses.dataclass(frozen=True)
class Search:
    """Searches for absent people, each among many images of others.

    Attributes:
        kind: name of the distance that the answers are ordered by.
        num_images: number of images in each search.
        num_queries: number of searches.
        rates: shares of the searches, ascending.
        distances: distance below which the best image of at most each of `rates` lies.
    """

    kind: str
    num_images: int
    num_queries: int
    rates: tuple[float, ...]
    distances: tuple[float, ...]

    def threshold(self, num_images: int, false_answer_rate: float) -> float | None:
        """Return the threshold for searches among `num_images` images, or None if there are too few searches to know.

        Images add up as if independent: a search of m images has no false answer with the probability p ** (m / n), where p
        is that of a search of n.
        """
        rate = float(-np.expm1(np.log1p(-false_answer_rate) * self.num_images / max(num_images, 1)))
        if rate < self.rates[0]:
            return None
        return float(np.interp(np.log(rate), np.log(self.rates), self.distances))


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration:
    """Calibrated distances of one network.

    Attributes:
        data: name of the data that it was learnt on.
        num_identities: number of identities among them.
        num_images: number of images among them.
        cross_camera: True if matching pairs are of two cameras, as in the evaluation.
        prior: share of matching pairs that probabilities assume.
        curves: calibration of each distance, by its name in `KINDS`.
        search: searches for absent people; None if no person has both a match and others to search among.
        network: fingerprint of the weights.
        mix: weight of the pair distance in the mixed distance.
        flip: True if the features of an image and its mirror image are averaged.
    """

    data: str
    num_identities: int
    num_images: int
    cross_camera: bool
    prior: float
    curves: Mapping[str, Curve]
    search: Search | None
    network: str
    mix: float
    flip: bool

    def __repr__(self) -> str:
        """Return the data and the distances as text."""
        return f"Calibration({self.data!r}, {self.num_identities:,} people, {', '.join(self.curves)}, prior={self.prior:g})"

    def curve(self, kind: str) -> Curve:
        """Return the calibration of a distance.

        Raises:
            UserError: there is none of this name.
        """
        if kind not in self.curves:
            raise UserError(f"kind: found {kind!r}, expected one of {', '.join(self.curves)}; {_NO_KIND}")
        return self.curves[kind]

    def probability(
        self, distances: Float[np.ndarray, "*shape"] | float, kind: str, prior: float | None = None
    ) -> Float[np.ndarray, "*shape"]:
        """Compute the probability that the images of each pair show one person.

        Args:
            distances: distances of any shape; NaN gives NaN.
            kind: name of the distance, in `KINDS`.
            prior: share of matching pairs among those that are asked about; the calibration's own if None.

        Returns:
            Probabilities in [0, 1], not increasing with the distance.

        Raises:
            UserError: the distance is not calibrated, or the prior does not lie between 0 and 1.
        """
        curve = self.curve(kind)
        prior = check_prior(self.prior if prior is None else prior)
        odds = np.interp(np.asarray(distances, np.float64), curve.distances, curve.log_odds)
        return np.asarray(1 / (1 + np.exp(-(odds + np.log(prior / (1 - prior))))))

    def threshold(self, kind: str, false_match_rate: float | None = None) -> float:
        """Return the distance below which a pair is said to match.

        Args:
            kind: name of the distance, in `KINDS`.
            false_match_rate: share of the pairs of different people that may lie below it; 1e-2 if None.

        Raises:
            UserError: the distance is not calibrated, or the rate is not one that the number of pairs allows.
        """
        curve, rate = self.curve(kind), RATE if false_match_rate is None else false_match_rate
        if not curve.rates[0] <= rate <= 1:
            raise UserError(
                f"false_match_rate: found {rate:g}, expected {curve.rates[0]:.2g} to 1, as {curve.num_other:,} pairs of "
                "different people allow; raise it, or calibrate on more people"
            )
        return float(np.interp(np.log(rate), np.log(curve.rates), curve.rate_distances))

    @property
    def search_kind(self) -> str:
        """Name of the distance that orders the answers of a search."""
        return "mixed" if "mixed" in self.curves else "individual"

    def search_threshold(self, kind: str, num_images: int, false_answer_rate: float = 0.1) -> float | None:
        """Return the distance below which the best of many images is said to match, or None if it is not known.

        The threshold of a pair is too weak for a search: among many images, one false match is a false answer.

        Args:
            kind: name of the distance that orders the answers, `search_kind`.
            num_images: number of images that the query is compared with.
            false_answer_rate: share of queries of absent people that may be answered by someone.

        Returns:
            Threshold; None for many more images than the calibration saw, and for a distance that orders no answers.

        Raises:
            UserError: the distance is not calibrated, or the rate does not lie between 0 and 1.
        """
        self.curve(kind)
        if not 0 < false_answer_rate < 1:
            raise UserError(
                f"false_answer_rate: found {false_answer_rate:g}, expected a share between 0 and 1, such as 0.1; correct it"
            )
        if self.search is None or self.search.kind != kind:
            return None
        return self.search.threshold(num_images, false_answer_rate)

    def caution(self) -> str:
        """Return a sentence on the data that the calibration holds for."""
        pairs = "pairs of two cameras" if self.cross_camera else "pairs of any cameras"
        return (
            f"Learnt on {self.data} ({self.num_identities:,} people, {pairs}); a probability or threshold of one set of "
            "cameras does not carry over to another, so calibrate on labelled photographs of your own."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as a dictionary that JSON can hold."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "Calibration":
        """Read a calibration from the dictionary of `to_dict`.

        Args:
            values: value read from JSON.
            where: file that it was read from, for the error.

        Raises:
            UserError: it is no calibration of this version.
        """
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}"[:80])
            kinds = KINDS if "mixed" in values["curves"] else KINDS[:1]
            curves = {kind: _read_curve(values["curves"][kind]) for kind in kinds}
            prior = check_prior(float(values["prior"]))
            return cls(
                str(values["data"]), int(values["num_identities"]), int(values["num_images"]),
                bool(values["cross_camera"]), prior, curves, _read_search(values["search"]),
                str(values["network"]), float(values["mix"]), bool(values["flip"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise UserError(
                f"{where}: found no calibration ({reason}), expected one of this version; run "
                "--mode=calibrate again, or remove it"
            ) from error


_FORMAT = 1


def per_cent(probability: float) -> str:
    """Format a probability, without claiming certainty."""
    if not 0.001 <= probability <= 0.999:
        return "above 99.9 %" if probability > 0.5 else "below 0.1 %"
    return f"{100 * probability:.1f} %"


def check_prior(prior: float) -> float:
    """Return a prior, the share of matching pairs.

    Raises:
        UserError: it does not lie between 0 and 1.
    """
    if not 0 < prior < 1:
        raise UserError(
            f"prior: found {prior:g}, expected a share of matching pairs between 0 and 1, such as 0.5; correct it"
        )
    return prior


def _read_curve(values: Mapping[str, Any]) -> Curve:
    numbers = lambda name: _finite(values[name])
    curve = Curve(
        str(values["method"]), {str(name): float(loss) for name, loss in values["log_loss"].items()},
        numbers("distances"), numbers("log_odds"), numbers("rates"), numbers("rate_distances"),
        tuple(Threshold(**{name: float(x) for name, x in one.items()}) for one in values["thresholds"]),
        int(values["num_matching"]), int(values["num_other"]),
        Check(**{name: float(x) for name, x in values["check"].items()}),
    )  # fmt: skip
    _check_points(curve.distances, curve.log_odds, falls=True)
    _check_rates(curve.rates, curve.rate_distances)
    return curve


def _read_search(values: Mapping[str, Any] | None) -> Search | None:
    if values is None:
        return None
    sizes = (int(values["num_images"]), int(values["num_queries"]))
    search = Search(str(values["kind"]), *sizes, _finite(values["rates"]), _finite(values["distances"]))
    _check_rates(search.rates, search.distances)
    return search


def _check_rates(rates_S: Sequence[float], distances_S: Sequence[float]) -> None:
    _check_points(rates_S, distances_S, falls=False)
    if not 0 < rates_S[0] <= rates_S[-1] <= 1:
        raise ValueError("rates that are no shares")


def _check_points(across_S: Sequence[float], values_S: Sequence[float], *, falls: bool) -> None:
    """Raise ValueError if the points of a curve are not in order."""
    is_monotone = (np.diff(values_S) <= 0).all() if falls else (np.diff(values_S) >= 0).all()
    if not across_S or len(across_S) != len(values_S) or (np.diff(across_S) <= 0).any() or not is_monotone:
        raise ValueError("points that are not in order")


def _finite(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(x) for x in values)
    if not np.isfinite(numbers).all():
        raise ValueError("values that are not finite")
    return numbers
