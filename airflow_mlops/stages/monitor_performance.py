"""Monitoring of performance: a window's predictions, by labels that came later, against the value at promotion.

The metric now and the metric at promotion are of different rows, so this is a comparison of two samples: from an
interval for each the interval of their difference is made by squaring and adding the distances (Zou and Donner,
Construction of confidence intervals about effect measures, Statistics in Medicine 27, 2008). It is a drop when all of
the difference's interval lies above the declared loss.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from airflow_mlops.call.source import stamp_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Status
from airflow_mlops.errors import DataNotFoundError, GateError
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.verdicts import Measured, Verdicts, changed_since
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS
from airflow_mlops.spec.stages import MonitorPerformance
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.intervals import CONFIDENCE, Estimate, difference, intervals
from airflow_mlops.stages.labels import Joined, join
from airflow_mlops.stages.model_io import Facts, read_facts
from airflow_mlops.stages.predictions import folder_of, predicted, trained_on
from airflow_mlops.stages.scoring import evaluate
from airflow_mlops.stages.tables import read_table
from airflow_mlops.stages.verdict import tell

log = logging.getLogger(__name__)

_RELATIVE = frozenset({"rmse", "mae", "median_ae"})
"""Metrics in the unit of the target: their drop is a share of the value at promotion."""
_RAREST = 5


def run(call: Call, params: MonitorPerformance, store: Store) -> Outcome:
    """Judge the window's predictions by their labels; output ``verdict``.

    The version that made the predictions is held against its own promotion. Where another one serves by now, a drop is
    only a warning.

    Raises:
        DataNotFoundError: when nothing was predicted for the window.
        GateError: when the version was promoted without the metric.
        SchemaError: when the key is missing on either side, or of another type.
    """
    registry = ModelRegistry.of(call, store)
    verdicts = Verdicts(store, call.pipeline, "performance")
    found = predicted(folder_of(params.destination, call, store), call, registry, params.key)
    version = found.version
    state = stamp_of(params.labels, call.window) if isinstance(params.labels, str) else None
    facts = read_facts(registry.api, version.run_id)
    joined = join(found.table, _labels(call, params, store), params.key, facts)
    logged = registry.api.logged(version.run_id).metrics
    name, promoted = _promoted(logged, params.metric, facts, version.version, params.confidence)
    measured, status, reasons = judge(joined, name, promoted, params, facts)
    waits = status == "insufficient_data"
    if trained_on(facts, call.window, params.grain):
        status, waits = "insufficient_data", False
        reasons.insert(0, f"version {version.version} was trained on this window, so what it says of it is no news")
    elif found.served and status == "drift":
        status = "warn"
        reasons.append(f"version {version.version} has predicted, and champion {found.served} serves now")
    reasons += joined.notes
    for key in changed_since(verdicts, params.labels, params.grain):
        if call.window is None or key != call.window.key:
            reasons.append(
                f"labels of {key} were written again after it was judged; it is not judged twice by itself; to "
                f"judge it anew, run this DAG with the window {key}"
            )
    said: dict[str, Any] = {
        "status": status,
        "reasons": reasons,
        "rows": measured.labels,
        "champion": version.version,
        "alarm": status in ("drift", "warn"),
        "performance": measured.model_dump(mode="json"),
        "labels": state,
        "waits": waits,
    }
    return tell(call, store, registry, said, _metrics(measured))


def _labels(call: Call, params: MonitorPerformance, store: Store) -> pa.Table:
    try:
        # Without the task: labels of a window may change, so none are kept for later runs.
        return read_table(extract(params.extract, call.window, store), store)
    except DataNotFoundError as error:
        log.info("no labels: %s", error)
        return pa.table({name: pa.nulls(0) for name in params.key})


def _promoted(
    logged: dict[str, float], metric: str | None, facts: Facts, version: str, confidence: float
) -> tuple[str, Estimate]:
    """The metric and its value at promotion, with an interval of the confidence asked for.

    The one that was logged is of 95%; the distances to its bounds go with the quantiles of the normal distribution.
    """
    usual = (name for name in DEFAULT_METRICS[facts.task] if f"test.{name}" in logged)
    name = metric or next(usual, DEFAULT_METRICS[facts.task][0])
    value = logged.get(f"test.{name}")
    if value is None:
        raise GateError(
            f"version {version} was promoted without {name!r}",
            allowed=", ".join(each for each in METRICS if f"test.{each}" in logged),
            fix=f"add {name} to evaluate.metrics, and train again",
        )
    wider = float(stats.norm.ppf((1 + confidence) / 2) / stats.norm.ppf((1 + CONFIDENCE) / 2))
    # A metric whose draws were all the same has no interval: it is taken as known.
    low, high = logged.get(f"test.{name}.low", value), logged.get(f"test.{name}.high", value)
    return name, Estimate(value, value - (value - low) * wider, value + (high - value) * wider)


def judge(
    joined: Joined, metric: str, promoted: Estimate, params: MonitorPerformance, facts: Facts
) -> tuple[Measured, Status, list[str]]:
    """Hold the metric on labelled predictions against its value at promotion.

    Args:
        joined: the predictions that have labels.
        metric: the metric's name.
        promoted: its value at promotion, with an interval of the confidence asked for.
        params: the drop, the fewest labels, and the confidence.
        facts: what is known of the model.

    Returns:
        What was measured, the status, and the reasons.
    """
    scores, count = joined.scores, len(joined.scores.truth)
    measured = Measured(
        metric=metric,
        promoted=promoted.value,
        promoted_interval=_bounds(promoted),
        labels=count,
        predictions=joined.predictions,
    )
    share = f"{count:,} labels of {joined.predictions:,} predictions have come"
    if count < params.min_labels:
        return measured, "insufficient_data", [f"{share}; at least {params.min_labels:,} are needed"]
    now = estimate_of(metric, scores, params.confidence)
    if isinstance(now, str):
        return measured, "insufficient_data", [f"{share}, and {now}"]
    better = METRICS[metric].more_is_better
    loss = difference(promoted, now) if better else difference(now, promoted)
    limit = params.drop * abs(promoted.value) if metric in _RELATIVE else params.drop
    low, high = _bounds(loss)
    measured = measured.model_copy(
        update={
            "value": now.value,
            "interval": _bounds(now),
            "loss": loss.value,
            "loss_interval": (low, high),
            "limit": limit,
        }
    )
    found = (
        f"{metric} is {now.value:.4f} ({_spoken(_bounds(now))}) on {count:,} labels of {joined.predictions:,} "
        f"predictions, and was {promoted.value:.4f} ({_spoken(_bounds(promoted))}) at promotion"
    )
    sure = f"the loss of {loss.value:+.4f} is with {params.confidence:.0%} confidence from {low:+.4f} to {high:+.4f}"
    if low > limit:
        return measured, "drift", [f"{found}: {sure}, all of it more than {limit:.4g}"]
    return measured, "ok", [f"{found}: {sure}, which is not all of it more than {limit:.4g}"]


def estimate_of(metric: str, scores: Scores, confidence: float) -> Estimate | str:
    """The metric and its interval, or why these labels do not give one."""
    try:
        value = evaluate(metric, scores)
    except GateError:
        return f"{metric} is not defined on them: they are of one class, or all the same"
    bounds = intervals([metric], scores, confidence)[metric]
    if bounds is None and scores.probability is not None:
        rarest = int(np.unique(scores.truth, return_counts=True)[1].min())
        if rarest < _RAREST:
            return f"{metric} cannot be told from chance: only {rarest} of them are of the rarest class"
    low, high = bounds or (value, value)
    return Estimate(value, low, high)


def _bounds(estimate: Estimate) -> tuple[float, float]:
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return low, high


def _spoken(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _metrics(measured: Measured) -> dict[str, float]:
    found: dict[str, float | None] = {
        "labels": float(measured.labels),
        "predictions": float(measured.predictions),
        f"now.{measured.metric}": measured.value,
        "loss": measured.loss,
    }
    if measured.loss_interval:
        found |= {"loss.low": measured.loss_interval[0], "loss.high": measured.loss_interval[1]}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
