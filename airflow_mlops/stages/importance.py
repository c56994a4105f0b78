"""Permutation importance: how much worse a model gets when one raw column says nothing any more.

A column's values are shuffled over the rows, and the loss of the metric is its importance (Breiman, Random forests,
Machine Learning 45, 2001; for any model Fisher, Rudin and Dominici, All models are wrong, but many are useful, JMLR 20,
2019). It is measured at the model's own door, on raw rows, so that features and preprocessing count. Columns that say
the same thing share their importance, and each may look idle.

`sklearn.inspection.permutation_importance` is the same for one column and repeat at a time. Here many are predicted at
once: a pipeline's fixed cost of some 10 ms a prediction would be paid a hundred times for twenty columns.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.stages.bootstrap import measure, part_of
from airflow_mlops.stages.model_io import Model, raw_rows
from airflow_mlops.stages.scoring import score_frame

log = logging.getLogger(__name__)

REPEATS = 5
BUDGET = 250_000
"""Predictions of a row that are spent at most; more columns than that allows are measured on fewer rows."""

_BLOCK = 25_000
_MIN_ROWS = 100


def importance(model: Model, table: pa.Table, truth: np.ndarray[Any, Any], metric: str, rows: int) -> dict[str, Any]:
    """The importance of each raw column that the model takes, the greatest first, as plain JSON.

    Args:
        model: the loaded model.
        table: the held-out rows.
        truth: their target, as the metric takes it.
        metric: what gets worse.
        rows: how many rows are looked at, at most.

    Returns:
        ``{metric, rows, repeats, columns: [{column, mean, deviation}]}``; or ``{metric, problem}`` where it cannot be
        measured, which is no reason to fail.
    """
    frame = raw_rows(table, model.facts)
    columns = len(frame.columns)
    count = min(len(frame), rows, max(_MIN_ROWS, BUDGET // (REPEATS * columns)))
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(len(frame), count, replace=False))
    frame, truth = frame.iloc[chosen].reset_index(drop=True), truth[chosen]
    shuffles = [random.permutation(count) for _ in range(REPEATS)]
    try:
        losses = _losses(model, frame, truth, metric, shuffles)
    except Exception as error:  # the user's code meets rows that never were, and may refuse them
        log.warning("permutation importance is not measured: %s: %s", type(error).__name__, error)
        return {"metric": metric, "problem": f"the model does not take shuffled rows: {type(error).__name__}: {error}"}
    if not np.isfinite(losses).all():
        return {"metric": metric, "problem": f"{metric} is not defined on the {count} rows looked at"}
    found: list[dict[str, Any]] = [
        {"column": name, "mean": float(each.mean()), "deviation": float(each.std(ddof=1))}
        for name, each in zip(frame.columns, losses, strict=True)
    ]
    found.sort(key=lambda entry: (-entry["mean"], entry["column"]))
    return {"metric": metric, "rows": count, "repeats": REPEATS, "columns": found}


def _losses(
    model: Model, frame: pd.DataFrame, truth: np.ndarray[Any, Any], metric: str, shuffles: list[Any]
) -> np.ndarray[Any, Any]:
    """By how much the metric gets worse, of shape ``(columns, repeats)``; a gain is negative."""
    count, ones = len(frame), np.ones(len(frame))
    sign = 1.0 if METRICS[metric].more_is_better else -1.0
    base = measure(metric, score_frame(model, frame, truth))(ones)
    trials = [(column, shuffle) for column in range(len(frame.columns)) for shuffle in range(len(shuffles))]
    together = max(1, _BLOCK // count)
    losses = np.empty(len(trials))
    for start in range(0, len(trials), together):
        block = trials[start : start + together]
        scores = score_frame(model, _shuffled(frame, block, shuffles), np.tile(truth, len(block)))
        for index in range(len(block)):
            part = part_of(scores, np.arange(index * count, (index + 1) * count))
            losses[start + index] = sign * (base - measure(metric, part)(ones))
    return losses.reshape(len(frame.columns), len(shuffles))


def _shuffled(frame: pd.DataFrame, block: list[tuple[int, int]], shuffles: list[Any]) -> pd.DataFrame:
    """The rows once for every trial, one after another, each with its one column shuffled; types stay as they are."""
    plain = np.arange(len(frame))
    columns = {}
    for position, name in enumerate(frame.columns):
        order = [shuffles[shuffle] if column == position else plain for column, shuffle in block]
        columns[name] = frame[name].take(np.concatenate(order)).reset_index(drop=True)
    return pd.DataFrame(columns)
