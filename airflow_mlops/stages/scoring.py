"""What a model says of rows, and how good that is: metrics by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn import metrics as sk

from airflow_mlops.errors import DataError, GateError
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS, metrics_of
from airflow_mlops.spec.stages import Evaluate
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.model_io import Facts, Model, raw_rows
from airflow_mlops.stages.team_code import name_of, predict, user_code


def metric_names(params: Evaluate, facts: Facts, *, probabilities: bool) -> tuple[str, ...]:
    """The metrics declared, or those of the usual ones that the model's answers allow.

    Raises:
        GateError: when the task does not have one of them, or the model gives no probabilities for it.
    """
    possible = [
        name
        for name in metrics_of(facts.task)
        if probabilities or facts.task == "regression" or METRICS[name].needs == "label"
    ]
    wrong = [name for name in params.metrics if name not in possible]
    if wrong:
        known = all(name in METRICS and facts.task in METRICS[name].tasks for name in wrong)
        why = (
            "which the model's labels without probabilities cannot give"
            if known
            else f"which {facts.task} does not have"
        )
        raise GateError(f"evaluate.metrics asks for {', '.join(map(repr, wrong))}, {why}", allowed=", ".join(possible))
    return params.metrics or tuple(name for name in DEFAULT_METRICS[facts.task] if name in possible)


def encode(target: pd.Series[Any], facts: Facts) -> np.ndarray[Any, Any]:
    """The target as class indices, or as numbers for regression.

    Raises:
        DataError: when rows have no target, or a class that training never saw.
    """
    if target.isna().any():
        raise DataError(f"the target {facts.target!r} has {int(target.isna().sum())} nulls")
    if facts.task == "regression":
        return np.asarray(target.to_numpy(dtype=float))
    index = {value: position for position, value in enumerate(facts.classes)}
    unknown = sorted({str(value) for value in target.unique() if value not in index})
    if unknown:
        raise DataError(
            f"the held-out rows have classes that training never saw: {', '.join(unknown)}",
            allowed=", ".join(map(str, facts.classes)),
            fix="read more windows (train.windows), or split at random",
        )
    return np.asarray(target.map(index).to_numpy(dtype=np.int64))


def score(model: Model, table: pa.Table, truth: np.ndarray[Any, Any]) -> Scores:
    """What a model says of raw rows."""
    return score_frame(model, raw_rows(table, model.facts), truth)


def score_frame(model: Model, rows: pd.DataFrame, truth: np.ndarray[Any, Any]) -> Scores:
    """What a model says of a frame of the raw columns that it takes.

    A classifier without probabilities is as sure as can be of the class that it says.
    """
    if model.facts.task == "regression":
        return Scores(truth, predict(model.estimator, rows).astype(float))
    with user_code(f"predict_proba of {name_of(model.estimator)}"):
        probability = model.probability(rows)
    if probability is None:
        index = {value: position for position, value in enumerate(model.facts.classes)}
        said = np.array([index[value] for value in predict(model.estimator, rows).tolist()], dtype=np.int64)
        return Scores(truth, said, np.eye(len(index))[said])
    probability = np.asarray(probability, dtype=float)
    return Scores(truth, probability.argmax(axis=1), probability)


_MEASURES: dict[str, Callable[[Scores], float]] = {
    "roc_auc": lambda s: sk.roc_auc_score(s.truth, _positive(s)),
    "average_precision": lambda s: sk.average_precision_score(s.truth, _positive(s)),
    "brier": lambda s: sk.brier_score_loss(s.truth, _positive(s)),
    "f1": lambda s: sk.f1_score(s.truth, s.prediction, zero_division=0),
    "precision": lambda s: sk.precision_score(s.truth, s.prediction, zero_division=0),
    "recall": lambda s: sk.recall_score(s.truth, s.prediction, zero_division=0),
    "mcc": lambda s: sk.matthews_corrcoef(s.truth, s.prediction),
    "log_loss": lambda s: sk.log_loss(s.truth, _all(s), labels=np.arange(_all(s).shape[1])),
    "accuracy": lambda s: sk.accuracy_score(s.truth, s.prediction),
    "balanced_accuracy": lambda s: sk.balanced_accuracy_score(s.truth, s.prediction),
    "f1_macro": lambda s: sk.f1_score(s.truth, s.prediction, average="macro", zero_division=0),
    "roc_auc_ovr": lambda s: sk.roc_auc_score(s.truth, _all(s), multi_class="ovr", labels=np.arange(_all(s).shape[1])),
    "rmse": lambda s: sk.root_mean_squared_error(s.truth, s.prediction),
    "mae": lambda s: sk.mean_absolute_error(s.truth, s.prediction),
    "median_ae": lambda s: sk.median_absolute_error(s.truth, s.prediction),
    "mape": lambda s: sk.mean_absolute_percentage_error(s.truth, s.prediction),
    "r2": lambda s: sk.r2_score(s.truth, s.prediction),
}


def _all(scores: Scores) -> Any:
    return scores.probability


def _positive(scores: Scores) -> Any:
    return _all(scores)[:, 1]


def evaluate(metric: str, scores: Scores) -> float:
    """One metric, by scikit-learn.

    Raises:
        GateError: when the metric is not defined on these rows.
    """
    try:
        with warnings.catch_warnings():
            # That a metric is not defined is said below, in our words.
            warnings.simplefilter("ignore")
            value = float(_MEASURES[metric](scores))
    except ValueError as error:
        raise GateError(f"{metric!r} cannot be computed on the {len(scores.truth)} held-out rows: {error}") from error
    if not np.isfinite(value):
        found = "one class" if scores.probability is not None and len(np.unique(scores.truth)) < 2 else "no spread"
        raise GateError(
            f"{metric!r} is not defined on the {len(scores.truth)} held-out rows: they have {found}",
            fix="hold out more rows (prepare.split.test), or evaluate another metric",
        )
    return value
