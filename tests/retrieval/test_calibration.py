"""Probabilities and thresholds, against a distribution whose probabilities are known, and against literal loops."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from cacenet_jax.errors import UserError
from cacenet_jax.retrieval import calibration_fit
from cacenet_jax.retrieval.calibration import Calibration, Check
from cacenet_jax.retrieval.calibration_fit import (
    Pairs,
    calibration_error,
    check_curve,
    fit,
    intervals,
    learn_curve,
    learn_search,
    split_identities,
    threshold_at,
)

PEOPLE = 60
SEARCH = learn_search("individual", np.random.default_rng(9).normal(3, 1, (1000, 50)).min(axis=1), 50)
GRID = np.linspace(-1, 5, 301)


def draw(seed, people=PEOPLE, count=12000, share=0.25, spread=1.0):
    """Pairs whose log odds at equal shares are known: distances are normal, around 1 for one person and 3 for two."""
    random = np.random.default_rng(seed)
    same = random.random(count) < share
    first = random.integers(0, people, count)
    second = np.where(same, first, (first + random.integers(1, people, count)) % people)
    return Pairs(np.where(same, 1.0, 3.0) + spread * random.standard_normal(count), same, first, second)


def true_probability(distance, prior=0.5):
    odds = (distance - 3) ** 2 / 2 - (distance - 1) ** 2 / 2 + np.log(prior / (1 - prior))
    return 1 / (1 + np.exp(-odds))


def calibration(curve, prior=0.5, kinds=("individual",)):
    return Calibration("my cameras", PEOPLE, 99, True, prior, dict.fromkeys(kinds, curve), SEARCH, "abc", 0.5, True)


@pytest.fixture(scope="module")
def curve():
    return learn_curve(draw(0), split_identities(PEOPLE))


@pytest.mark.parametrize("method", calibration_fit.METHODS)
def test_the_probability_is_that_of_the_distribution_whatever_the_share_of_pairs(method):
    for share in (0.1, 0.5):
        points = fit(method, draw(1, share=share))
        error = np.abs(points.probability(GRID) - true_probability(GRID))
        assert error.max() < (0.03 if method == "logistic" else 0.12), share
        assert error.mean() < 0.03
        assert (np.diff(points.probability(GRID)) <= 0).all()


def test_a_prior_is_bayes_rule(curve):
    learnt = calibration(curve)
    for prior in (0.01, 0.3):
        error = np.abs(learnt.probability(GRID, "individual", prior) - true_probability(GRID, prior))
        assert error.max() < 0.04
    few = dataclasses.replace(learnt, prior=0.3)
    np.testing.assert_array_equal(few.probability(GRID, "individual"), learnt.probability(GRID, "individual", 0.3))
    with pytest.raises(UserError, match="prior: found 1, expected a share of matching pairs between 0 and 1"):
        learnt.probability(GRID, "individual", 1.0)


def test_a_probability_is_a_share_that_does_not_rise(curve):
    wide = np.linspace(-100, 100, 1001)
    probability = calibration(curve).probability(wide, "individual")
    assert (probability >= 0).all() and (probability <= 1).all() and (np.diff(probability) <= 0).all()
    assert probability[0] > 0.95 and probability[-1] < 0.05
    shaped = calibration(curve).probability(np.array([[1.0, np.nan]], np.float32), "individual")
    assert shaped.shape == (1, 2) and np.isnan(shaped[0, 1])
    assert calibration(curve).probability(2.0, "individual") == pytest.approx(0.5, abs=0.03)


def test_a_network_that_separates_nothing_knows_nothing():
    pairs = draw(2)._replace(distance_P=np.random.default_rng(0).random(12000))
    reversed_ = draw(2)._replace(distance_P=-draw(2).distance_P)  # one person lies farther apart than two
    for some in (pairs, reversed_):
        for method in calibration_fit.METHODS:
            np.testing.assert_allclose(fit(method, some).probability(GRID), 0.5, atol=0.2)


def test_thresholds_let_through_at_most_the_rate(curve):
    pairs = draw(0)
    others = pairs.distance_P[~pairs.same_P].tolist()
    assert [threshold.rate for threshold in curve.thresholds] == [1e-2, 1e-1] or len(others) >= 10000
    for threshold in curve.thresholds:
        below = [x for x in others if x < threshold.distance]
        assert len(below) <= threshold.rate * len(others)
        assert len(below) + 1 > threshold.rate * len(others)  # the largest one that does
        matching = pairs.distance_P[pairs.same_P]
        assert threshold.match_rate == pytest.approx(sum(x < threshold.distance for x in matching) / len(matching))
        assert calibration(curve).threshold("individual", threshold.rate) == threshold.distance
    assert calibration(curve).threshold("individual") == calibration(curve).threshold("individual", 1e-2)


def test_rates_that_the_pairs_do_not_allow_are_not_told():
    curve = learn_curve(draw(3, count=2000), split_identities(PEOPLE))  # about 1,500 pairs of two people
    assert [threshold.rate for threshold in curve.thresholds] == [1e-2, 1e-1]
    learnt = calibration(curve)
    with pytest.raises(
        UserError, match=r"false_match_rate: found 0.001, expected 0.0068 to 1, as 1,4\d\d pairs of diff"
    ):
        learnt.threshold("individual", 1e-3)
    with pytest.raises(UserError, match="kind: found 'pair', expected one of individual"):
        learnt.threshold("pair")


def test_intervals_hold_the_truth_and_narrow_with_people():
    limits = []
    truth = 3 - 2.3263  # 1 % of a normal distribution
    for people in (20, 400):
        others = draw(4, people=people, count=40 * people, share=0.0)
        ((low, high),) = intervals(others, [1e-2], people)
        assert low < truth < high
        limits.append(high - low)
    assert limits[1] < limits[0] / 2


def test_a_bootstrap_draw_counts_a_pair_as_often_as_its_people(monkeypatch):
    """One draw of the bootstrap against a list in which every pair is repeated."""
    others = draw(5, people=6, count=300, share=0.0)
    monkeypatch.setattr(calibration_fit, "_RESAMPLES", 1)
    ((low, high),) = intervals(others, [0.1], 6, seed=3)
    times = np.bincount(np.random.default_rng(3).integers(0, 6, 6), minlength=6).tolist()
    repeated = [
        distance
        for distance, first, second in zip(others.distance_P.tolist(), others.first_P, others.second_P)
        for _ in range(times[first] * times[second])
    ]
    assert low == high == threshold_at(np.sort(np.array(repeated)), 0.1)


@pytest.mark.parametrize("images", [10, 50, 400])
def test_a_search_among_any_number_of_images_has_the_false_answers_that_were_asked(curve, images):
    """Learnt from searches among 50 images, whose distances are independent."""
    threshold = calibration(curve).search_threshold("individual", images, 0.1)
    best = np.random.default_rng(10).normal(3, 1, (4000, images)).min(axis=1)
    assert 0.05 < (best < threshold).mean() < 0.2  # of 400 images, from the best 13 of 1,000 searches
    assert threshold < calibration(curve).search_threshold("individual", images, 0.2)


def test_a_search_among_too_many_images_has_no_threshold(curve):
    assert calibration(curve).search_threshold("individual", 10**6) is None
    assert dataclasses.replace(calibration(curve), search=None).search_threshold("individual", 5) is None
    both = calibration(curve, kinds=("individual", "pair", "mixed"))
    assert both.search_threshold("pair", 5) is None  # no search is ordered by it
    with pytest.raises(UserError, match="false_answer_rate: found 0, expected a share between 0 and 1"):
        calibration(curve).search_threshold("individual", 5, 0.0)


def test_calibration_error_is_the_literal_sum():
    pairs = draw(6, count=500)
    probability = np.random.default_rng(1).random(500)
    weight = [0.5 / pairs.same_P.sum() if same else 0.5 / (~pairs.same_P).sum() for same in pairs.same_P]
    total = 0.0
    for i in range(15):
        inside = [n for n in range(500) if i / 15 <= probability[n] < (i + 1) / 15]
        mass = sum(weight[n] for n in inside)
        if mass:
            confidence = sum(weight[n] * probability[n] for n in inside) / mass
            accuracy = sum(weight[n] * pairs.same_P[n] for n in inside) / mass
            total += mass * abs(confidence - accuracy)
    assert calibration_error(probability, pairs.same_P) == pytest.approx(total)
    assert calibration_error(np.ones(500), pairs.same_P) == pytest.approx(0.5)


def test_people_who_are_checked_are_not_those_who_are_fitted(monkeypatch):
    fold = split_identities(PEOPLE)
    sets, whole = [], fit
    monkeypatch.setattr(calibration_fit, "fit", lambda method, pairs: sets.append(pairs) or whole(method, pairs))
    checked = []
    points = calibration_fit.Points.probability
    monkeypatch.setattr(
        calibration_fit.Points, "probability", lambda self, d: checked.append((len(sets) - 1, d)) or points(self, d)
    )
    pairs = draw(0)
    learn_curve(pairs, fold)
    assert len(checked) == 2 * (fold.max() + 1) and len(sets) == len(checked) + 1
    for number, distances in checked:
        held = np.isin(pairs.distance_P, distances)
        people = set(pairs.first_P[held]) | set(pairs.second_P[held])
        fitted = set(sets[number].first_P) | set(sets[number].second_P)
        assert people and not people & fitted


def test_on_other_people_the_rate_is_what_was_asked(curve):
    assert curve.check.calibration_error < 0.03 and 0.005 < curve.check.false_match_rate < 0.02
    other = check_curve(curve, draw(7, people=200))
    assert other.calibration_error < 0.03 and 0.005 < other.false_match_rate < 0.02
    moved = draw(7, people=200)
    moved = check_curve(curve, moved._replace(distance_P=moved.distance_P - 1))  # another set of cameras
    assert moved.calibration_error > 0.1 and moved.false_match_rate > 0.04


def test_the_better_method_is_chosen():
    assert learn_curve(draw(8), split_identities(PEOPLE)).method == "logistic"  # which the truth is
    pairs = draw(8, count=40000)
    bent = pairs._replace(distance_P=np.sign(pairs.distance_P - 2) * np.abs(pairs.distance_P - 2) ** 5)
    curve = learn_curve(bent, split_identities(PEOPLE))
    assert curve.method == "isotonic" and curve.log_loss["isotonic"] < curve.log_loss["logistic"]


def test_too_few_people_are_one_line():
    with pytest.raises(UserError, match="found 3 identities, expected at least 4, better 50"):
        split_identities(3)
    pairs = draw(0)
    with pytest.raises(UserError, match="found no group of identities with both matching and other pairs"):
        learn_curve(pairs.where(~pairs.same_P), split_identities(PEOPLE))


def test_without_scikit_learn_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    with pytest.raises(UserError, match=r"needs scikit-learn, .*; pip install 'cacenet_jax\[index\]'"):
        fit("logistic", draw(0))


def test_a_calibration_comes_back_from_json(curve):
    learnt = calibration(curve, 0.2, ("individual", "pair", "mixed"))
    again = Calibration.from_dict(json.loads(json.dumps(learnt.to_dict())), "file")
    assert again == learnt and isinstance(again.curves["mixed"].check, Check)
    assert "my cameras (60 people, pairs of two cameras)" in again.caution()


def broken(values, *path, to):
    *outer, last = path
    for key in outer:
        values = values[key]
    values[last] = to


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("format",), 2),
        (("prior",), 1.5),
        (("curves",), []),
        (("search", "rates"), [1.0]),
        (("curves", "individual", "log_odds"), [1.0, 2.0]),
        (("curves", "individual", "distances"), []),
        (("curves", "individual", "rates"), [0.0, float("nan")]),
        (("curves", "individual", "thresholds"), [{"rate": 1}]),
        (("curves", "individual", "check"), None),
    ],
)
def test_what_is_no_calibration_is_one_line(curve, path, to):
    values = json.loads(json.dumps(calibration(curve).to_dict()))
    broken(values, *path, to=to)
    with pytest.raises(
        UserError, match=r"^here: found no calibration \(.*\), expected one of this version; run --mode=cal"
    ):
        Calibration.from_dict(values, "here")
