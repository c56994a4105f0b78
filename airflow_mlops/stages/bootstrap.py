"""The paired bootstrap: by how much one model is better than another, and how sure that is.

Both models are scored on the same rows. Rows are drawn with replacement, both metrics are computed on every draw, and
the spread of their difference gives its confidence bound (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
ch. 13: the percentile interval). A draw is a vector of counts, one a row, and every metric here is a function of
counts; nothing is sorted again, which makes a thousand draws of twenty thousand rows a matter of a second. Only numpy
is loaded, and what limits its threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from airflow_mlops.errors import GateError
from airflow_mlops.spec.metrics import METRICS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Measure = Callable[[Floats], float]
"""From the counts of the rows to the metric's value; NaN where these rows do not define it."""

_MIN_DEFINED = 0.9
_AHEAD, _AHEAD_ROWS = 32, 1_000_000
"""How many draws are made ahead, and of how many rows together."""


class Scores(NamedTuple):
    """What a model says of some rows, and what is true.

    ``truth`` holds class indices (shape ``(rows,)``) or numbers; ``prediction`` the same; ``probability`` has shape
    ``(rows, classes)`` and is None for regression.
    """

    truth: npt.NDArray[Any]
    prediction: npt.NDArray[Any]
    probability: Floats | None = None


def part_of(scores: Scores, rows: npt.NDArray[Any]) -> Scores:
    """The scores of some rows, given by their numbers."""
    probability = None if scores.probability is None else scores.probability[rows]
    return Scores(scores.truth[rows], scores.prediction[rows], probability)


class Comparison(NamedTuple):
    """How a challenger compares with a champion; ``gain`` is positive where the challenger is better."""

    metric: str
    rows: int
    challenger: float
    champion: float
    gain: float
    lower: float
    upper: float
    confidence: float


def measure(metric: str, scores: Scores) -> Measure:
    """The metric as a function of row counts.

    Raises:
        GateError: when the metric needs probabilities and the model gives none.
    """
    if METRICS[metric].needs == "probability" and scores.probability is None:
        raise GateError(
            f"{metric!r} needs probabilities, and the model gives labels only", fix="gate on another metric"
        )
    values = losses(metric, scores)
    if values is not None:
        return _mean(values)
    truth, prediction = scores.truth, scores.prediction
    if scores.probability is None:
        return _regression(metric, truth.astype(float), prediction.astype(float))
    probability = scores.probability
    classes = probability.shape[1]
    if metric == "roc_auc":
        return _auc(truth == 1, probability[:, 1])
    if metric == "roc_auc_ovr":
        each = [_auc(truth == index, probability[:, index]) for index in range(classes)]
        return lambda counts: float(np.mean([auc(counts) for auc in each]))
    if metric == "average_precision":
        return _average_precision(truth == 1, probability[:, 1])
    return _confusion(metric, truth, prediction, classes)


def losses(metric: str, scores: Scores) -> Floats | None:
    """What a metric is the mean of, one value a row; None for a metric that is no mean."""
    truth, prediction, probability = scores
    if probability is None:
        error = np.abs(truth.astype(float) - prediction.astype(float))
        if metric == "mae":
            return np.asarray(error)
        if metric == "mape":
            return np.asarray(error / np.maximum(np.abs(truth.astype(float)), np.finfo(float).eps))
        return None
    if metric == "brier":
        return np.asarray((probability[:, 1] - (truth == 1)) ** 2)
    if metric == "log_loss":
        tiny = np.finfo(probability.dtype).eps
        return np.asarray(-np.log(np.clip(probability[np.arange(len(truth)), truth], tiny, 1 - tiny)))
    return None


def _mean(values: Floats) -> Measure:
    return lambda counts: float(counts @ values / counts.sum())


def _auc(positive: npt.NDArray[np.bool_], score: Floats) -> Measure:
    """The Mann-Whitney statistic over tied groups; ties count half."""
    order = np.argsort(score, kind="stable")
    hits, misses = order[positive[order]], order[~positive[order]]
    # How many of the misses have a lower score than each hit, and how many have no higher one; few hits are tied.
    lower = np.searchsorted(score[misses], score[hits], side="left")
    upper = np.searchsorted(score[misses], score[hits], side="right")
    tied = np.flatnonzero(lower != upper)
    first, last = lower[tied], upper[tied]
    below = np.zeros(len(misses) + 1)

    def auc(counts: Floats) -> float:
        above = counts[hits]
        np.cumsum(counts[misses], out=below[1:])
        pairs = above.sum() * below[-1]
        if not pairs:
            return float("nan")
        won = above @ below[lower] + above[tied] @ (below[last] - below[first]) / 2
        return float(won / pairs)

    return auc


def _average_precision(positive: npt.NDArray[np.bool_], score: Floats) -> Measure:
    """The sum over thresholds of precision times the step of recall, without interpolation."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) < 0])
    ordered = positive[order]

    def average_precision(counts: Floats) -> float:
        drawn = counts[order]
        hits = np.add.reduceat(np.where(ordered, drawn, 0.0), starts)
        total = hits.sum()
        if not total:
            return float("nan")
        chosen = np.cumsum(np.add.reduceat(drawn, starts))
        precision = np.divide(np.cumsum(hits), chosen, out=np.zeros_like(chosen), where=chosen > 0)
        return float(hits @ precision / total)

    return average_precision


def _confusion(metric: str, truth: Ints, prediction: Ints, classes: int) -> Measure:
    cell = truth * classes + prediction

    def of_counts(counts: Floats) -> float:
        table = np.bincount(cell, weights=counts, minlength=classes * classes).reshape(classes, classes)
        right, actual, said = np.diag(table), table.sum(axis=1), table.sum(axis=0)
        total = table.sum()
        if metric == "accuracy":
            return float(right.sum() / total)
        if metric == "mcc":
            top = right.sum() * total - actual @ said
            bottom = np.sqrt((total**2 - said @ said) * (total**2 - actual @ actual))
            return float(top / bottom) if bottom else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, precision = right / actual, right / said
            f1 = np.where(actual + said > 0, 2 * right / (actual + said), 0.0)
        if metric == "balanced_accuracy":
            return float(np.mean(recall[actual > 0]))
        if metric == "f1_macro":
            return float(np.mean(f1[(actual > 0) | (said > 0)]))
        one = {"f1": f1, "precision": precision, "recall": recall}[metric]
        return float(np.nan_to_num(one[1]))

    return of_counts


def _regression(metric: str, truth: Floats, prediction: Floats) -> Measure:
    error = np.abs(truth - prediction)
    if metric == "median_ae":
        return lambda counts: float(np.median(np.repeat(error, counts.astype(int))))
    squared = _mean(error**2)
    if metric == "rmse":
        return lambda counts: float(np.sqrt(squared(counts)))

    def r2(counts: Floats) -> float:
        centre = counts @ truth / counts.sum()
        spread = counts @ (truth - centre) ** 2
        return float(1 - counts @ error**2 / spread) if spread else float("nan")

    return r2


def _draws(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """The counts of the rows in each draw. A thread draws ahead, for which numpy needs no lock of the interpreter's."""
    random = np.random.default_rng(seed)
    most = min(_AHEAD, max(1, _AHEAD_ROWS // rows))

    def block(start: int) -> list[Floats]:
        return [
            np.bincount(random.integers(0, rows, rows), minlength=rows).astype(float)
            for _ in range(start, min(start + most, resamples))
        ]

    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(block, 0)
        for start in range(0, resamples, most):
            now, following = following.result(), ahead.submit(block, start + most)
            yield from now


def compare(
    metric: str, challenger: Scores, champion: Scores, *, confidence: float, resamples: int, seed: int
) -> Comparison:
    """Compare two models on the same rows.

    Args:
        metric: the metric's name.
        challenger: what the new model says of the rows.
        champion: what the champion says of the same rows.
        confidence: of the one-sided bounds; ``lower`` is the ``1 - confidence`` quantile of the bootstrapped gain.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        GateError: when the metric is not defined on these rows, or on too many draws.
    """
    sign = 1.0 if METRICS[metric].more_is_better else -1.0
    rows = len(challenger.truth)
    new, old = measure(metric, challenger), measure(metric, champion)
    ones = np.ones(rows)
    points = new(ones), old(ones)
    gains = np.empty(resamples)
    # BLAS would start threads for each of these small products, which wait for one another longer than they compute.
    with threadpool_limits(1):
        for index, counts in enumerate(_draws(rows, resamples, seed)):
            gains[index] = sign * (new(counts) - old(counts))
    defined = gains[np.isfinite(gains)]
    if not np.isfinite(points).all() or len(defined) < _MIN_DEFINED * resamples:
        raise GateError(
            f"{metric!r} is not defined on these {rows} rows, or on too many draws of them: a class is too rare",
            fix="gate on another metric, or hold out more rows (prepare.split.test)",
        )
    lower, upper = np.quantile(defined, [1 - confidence, confidence])
    return Comparison(
        metric, rows, points[0], points[1], sign * (points[0] - points[1]), float(lower), float(upper), confidence
    )
