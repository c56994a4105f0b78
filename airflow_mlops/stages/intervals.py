"""How sure a number is: confidence intervals of metrics, of rates, and of differences between two groups.

Rates have Wilson's score interval (E. B. Wilson, Probable inference, JASA 22, 1927), which does not shrink to nothing
at 0 and 1; means, such as the log loss, have Student's. Every other metric has the percentile interval of the bootstrap
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). All of them take rows as independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from threadpoolctl import threadpool_limits

from airflow_mlops.stages.bootstrap import Floats, Scores, losses, measure, part_of

CONFIDENCE = 0.95
RESAMPLES = 400

_MIN_DEFINED = 0.9
_MANY_ROWS = 500
_QUANTILES = 200


class Estimate(NamedTuple):
    """A number and the interval around it; ``low`` and ``high`` are None where the rows tell no interval."""

    value: float
    low: float | None = None
    high: float | None = None


def rate(hits: int, total: int, confidence: float = CONFIDENCE) -> Estimate:
    """The share of hits, with Wilson's interval."""
    found = stats.binomtest(int(hits), int(total)).proportion_ci(confidence, "wilson")
    return Estimate(hits / total, float(found.low), float(found.high))


def mean(values: Floats, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of values of shape ``(rows,)``, with Student's interval."""
    value = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if not spread:
        return Estimate(value)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return Estimate(value, value - half, value + half)


def difference(more: Estimate, less: Estimate) -> Estimate:
    """How much more one group has than another, from an interval for each.

    The bounds are squared and added (Zou and Donner, Construction of confidence intervals about effect measures,
    Statistics in Medicine 27, 2008); of two rates it is the interval of Newcombe (Interval estimation for the
    difference between independent proportions, Statistics in Medicine 17, 1998, method 10).
    """
    value = more.value - less.value
    if more.low is None or more.high is None or less.low is None or less.high is None:
        return Estimate(value)
    low = value - np.hypot(more.value - more.low, less.high - less.value)
    high = value + np.hypot(more.high - more.value, less.value - less.low)
    return Estimate(value, float(low), float(high))


def intervals(
    names: Sequence[str], scores: Scores, confidence: float = CONFIDENCE
) -> dict[str, tuple[float, float] | None]:
    """The interval of each metric on these rows.

    None where the rows tell none: a metric is undefined on too many draws, or the same on all of them, as the area
    under the curve is where every row is ranked right.
    """
    return {name: _interval(name, scores, confidence) for name in names}


def _interval(name: str, scores: Scores, confidence: float) -> tuple[float, float] | None:
    counted, values = _counted(name, scores), losses(name, scores)
    if counted is not None:
        found = rate(*counted, confidence) if counted[1] else Estimate(0.0)
    elif values is not None:
        found = mean(values, confidence)
    elif name == "rmse":
        squared = mean(np.asarray(scores.truth - scores.prediction, dtype=float) ** 2, confidence)
        found = Estimate(*(None if each is None else max(0.0, each) ** 0.5 for each in squared))  # type: ignore[arg-type]
    else:
        return _drawn(name, scores, confidence)
    return None if found.low is None or found.high is None else (found.low, found.high)


def _drawn(name: str, scores: Scores, confidence: float) -> tuple[float, float] | None:
    """The percentile interval of the bootstrap.

    Rows that a metric cannot tell apart are drawn together, as cells of a multinomial distribution.
    """
    rows = len(scores.truth)
    first, cell = np.unique(_alike(name, scores), return_index=True, return_inverse=True)[1:]
    of_counts = measure(name, part_of(scores, first))
    share = np.bincount(cell.ravel(), minlength=len(first)) / rows
    # Equal rows have equal intervals, whatever else is measured beside them.
    random = np.random.default_rng(0)
    values = np.empty(RESAMPLES)
    with threadpool_limits(1):  # as in a comparison
        for index in range(RESAMPLES):
            if len(first) == rows:
                counts = np.bincount(random.integers(0, rows, rows), minlength=rows)
            else:
                counts = random.multinomial(rows, share)
            values[index] = of_counts(counts.astype(float))
    return _percentile(values, confidence)


def _alike(name: str, scores: Scores) -> npt.NDArray[np.int64]:
    """A number for each row, of shape ``(rows,)``; the metric takes rows of the same number for the same.

    Of many rows ranked by a probability those of a class that lie between two of its quantiles count as tied: with 200
    of them the area under a curve moves by less than 0.001, and its interval by less than that.
    """
    truth, probability, rows = scores.truth, scores.probability, len(scores.truth)
    if probability is None:
        return np.arange(rows)
    if name in ("roc_auc", "average_precision"):
        if rows <= _MANY_ROWS:
            return np.arange(rows)
        edges = np.unique(np.quantile(probability[:, 1], np.linspace(0, 1, _QUANTILES + 1)))
        return np.asarray(np.searchsorted(edges, probability[:, 1], side="right") * 2 + (truth == 1))
    if name == "roc_auc_ovr":
        return np.arange(rows)
    return np.asarray(truth * probability.shape[1] + scores.prediction, dtype=np.int64)


def _counted(name: str, scores: Scores) -> tuple[int, int] | None:
    """A metric that is a rate, as hits among rows; None for any other."""
    truth, said = scores.truth, scores.prediction
    if name == "accuracy":
        return int(np.sum(truth == said)), len(truth)
    if name == "recall":
        return int(np.sum((truth == 1) & (said == 1))), int(np.sum(truth == 1))
    if name == "precision":
        return int(np.sum((truth == 1) & (said == 1))), int(np.sum(said == 1))
    return None


def _percentile(values: Floats, confidence: float) -> tuple[float, float] | None:
    defined = values[np.isfinite(values)]
    if len(defined) < _MIN_DEFINED * len(values) or np.ptp(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def as_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as plain JSON."""
    return estimate._asdict()
