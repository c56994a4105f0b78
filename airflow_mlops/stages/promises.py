"""What a pipeline promises, held against a sample and a model that was trained on it.

Each function returns where a promise is kept and raises where it is not, with the reason. The model is the logged one,
loaded as a server loads it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.code import load
from airflow_mlops.deployments.endpoint import Answer
from airflow_mlops.errors import CodeError, DataError, PromiseError
from airflow_mlops.spec.base import format_size
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.golden import differences, read_golden
from airflow_mlops.stages.model_io import Model, raw_rows
from airflow_mlops.stages.prepare import call_features, check_features, compare_features
from airflow_mlops.stages.scoring import encode, evaluate, score_frame
from airflow_mlops.stages.tables import canonical, require_columns, to_frame
from airflow_mlops.stages.team_code import user_code

_TOLERANCE = 1e-6
"""How far numbers may lie apart that should be the same, in absolute value or, above 1, as a share."""
_SINGLE = 25
"""How many rows are asked about one by one, and of how many columns the rows at both ends."""
_AGAINST = 0.01
"""How far a monotone answer may go the other way, as a share of the range of the average answers: noise of the fit."""


def thinned(table: pa.Table, rows: int) -> pa.Table:
    """At most so many rows, spread evenly."""
    if table.num_rows <= rows:
        return table
    return table.take(pa.array(np.linspace(0, table.num_rows - 1, rows).astype(np.int64)))


def keeps_feature_contract(path: str, sample: pa.Table, target: str) -> None:
    """A feature function gives a row for each row, in order, of that row alone, the same each time.

    Raises:
        CodeError: that says which promise was broken.
    """
    require_columns(sample.column_names, {target: "the target"})
    check_features(path, sample, target)
    build, frame = load(path), to_frame(sample.drop_columns([target]))
    first, second = (call_features(build, path, frame.copy(), target) for _ in range(2))
    if not first.equals(second):
        raise CodeError(f"{path} gives other features for the same rows", fix="leave chance and the clock out of it")
    for index in _singles(frame):
        alone = call_features(build, path, frame.iloc[[index]].reset_index(drop=True), target)
        compare_features(path, alone, first.iloc[[index]])


def _singles(rows: pd.DataFrame) -> list[int]:
    """The places of the rows that are asked about one by one: some spread evenly, and those at the ends of columns.

    What is done to few rows only, such as clipping, is done to the outermost.
    """
    chosen = set(np.linspace(0, len(rows) - 1, min(_SINGLE, len(rows))).astype(int).tolist())
    for _, column in list(rows.select_dtypes("number", exclude="timedelta").dropna(axis=1, how="all").items())[
        :_SINGLE
    ]:
        values = column.to_numpy(dtype=float, na_value=np.nan)
        chosen |= {int(np.nanargmin(values)), int(np.nanargmax(values))}
    return sorted(chosen)


def gives_unfitted(path: str) -> None:
    """A preprocess function gives a new transformer that was not fitted.

    Raises:
        CodeError: when it does not.
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    make = load(path)
    with user_code(path):
        first, second = make(), make()
    if not (hasattr(first, "fit") and hasattr(first, "transform")):
        raise CodeError(f"{path} gives {type(first).__name__}", allowed="an unfitted transformer")
    if first is second:
        raise CodeError(f"{path} gives the same transformer twice", fix="make a new one at each call")
    try:
        check_is_fitted(first)
    except (NotFittedError, TypeError):
        return
    if getattr(first, "__sklearn_is_fitted__", None) is None and any(name.endswith("_") for name in vars(first)):
        raise CodeError(f"{path} gives a fitted transformer", fix="leave fitting to the training rows")


def serves_as_trained(model: Model, golden: Path, rows: pd.DataFrame) -> None:
    """The logged model says what the fitted one said, and of single rows what it says of them among all.

    Raises:
        PromiseError: when it does not.
    """
    kept = read_golden(golden)
    table = pq.read_table(golden).select(list(model.facts.columns))
    there = raw_rows(table.cast(canonical(table.schema)), model.facts)
    regression = model.facts.task == "regression"
    found = differences(kept, _answer(model, there), _TOLERANCE, regression=regression)
    if found:
        raise PromiseError(f"the logged model does not say what the fitted one said: {'; '.join(found)}")
    whole = _numbers(model, rows)
    for index in _singles(rows):
        alone = _numbers(model, rows.iloc[[index]])[0]
        if not _same(alone, whole[index]):
            raise PromiseError(
                f"row {rows.index[index]} gets {_told(alone)} alone and {_told(whole[index])} among {len(rows)}",
                fix="move what is learned from many rows into prepare.preprocess, where it is fitted once",
            )


def _answer(model: Model, rows: pd.DataFrame) -> Answer:
    labels, chances = model.answer(rows)
    named = {}
    if chances is not None:
        chances = np.asarray(chances, dtype=float)
        named = {str(each): chances[:, index].tolist() for index, each in enumerate(model.facts.classes)}
    return Answer("", np.asarray(labels).tolist(), named, 0.0)


def _numbers(model: Model, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What a model says of rows, as numbers of shape ``(rows, 1)`` or ``(rows, classes)``."""
    scores = score_frame(model, rows, np.zeros(len(rows)))
    found = scores.prediction if scores.probability is None else scores.probability
    return np.asarray(found, dtype=float).reshape(len(rows), -1)


def _same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return bool(np.all(np.abs(left - right) <= _TOLERANCE * np.maximum(1.0, np.abs(right))))


def _told(values: np.ndarray[Any, Any]) -> str:
    return f"{values[-1]:.6g}"


def scores_of(model: Model, table: pa.Table) -> Scores:
    """What a model says of rows whose answers are known."""
    require_columns(table.column_names, {model.facts.target: "the target"})
    return score_frame(model, raw_rows(table, model.facts), encode(to_frame(table)[model.facts.target], model.facts))


def reaches(scores: Scores, least: Mapping[str, float], most: Mapping[str, float]) -> str:
    """The metrics are within their limits; return them in words.

    Raises:
        PromiseError: that names each metric that is not.
    """
    found = {name: evaluate(name, scores) for name in (*least, *most)}
    low = [f"{name} is {found[name]:.4g}, less than {bound:g}" for name, bound in least.items() if found[name] < bound]
    high = [f"{name} is {found[name]:.4g}, more than {bound:g}" for name, bound in most.items() if found[name] > bound]
    wrong = [*low, *high]
    if wrong:
        raise PromiseError(f"{'; '.join(wrong)} (on {len(scores.truth)} rows)")
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())


def beats_constant(scores: Scores, model: Model) -> str:
    """The model is better than the best answer that never changes; return both in words.

    Raises:
        PromiseError: when it is not.
    """
    truth = np.asarray(scores.truth)
    if model.facts.task == "regression":
        metric, constant = "rmse", Scores(truth, np.full(len(truth), truth.mean()))
    else:
        shares = np.bincount(truth, minlength=len(model.facts.classes)) / len(truth)
        same = np.tile(shares, (len(truth), 1))
        metric = "log_loss" if model.gives_probabilities else "accuracy"
        constant = Scores(truth, np.full(len(truth), shares.argmax()), same)
    own, other = evaluate(metric, scores), evaluate(metric, constant)
    told = f"{metric} {own:.4g}, of the best constant answer {other:.4g} (on {len(truth)} rows)"
    if own <= other if METRICS[metric].more_is_better else own >= other:
        raise PromiseError(
            f"the model is no better than a constant answer: {told}", fix="look at features and target of the sample"
        )
    return told


def is_monotone(model: Model, rows: pd.DataFrame, column: str, direction: str) -> None:
    """The average answer never moves against a direction while a column goes through its deciles.

    Raises:
        DataError: when the column is none of numbers, or always the same.
        PromiseError: when it moves the other way.
    """
    _require(rows, column)
    if len(model.facts.classes) > 2:
        raise DataError("tests.monotone needs a model of two classes or of a number")
    if not pd.api.types.is_numeric_dtype(rows[column]) or pd.api.types.is_bool_dtype(rows[column]):
        raise DataError(f"the column {column!r} is none of numbers, so nothing is monotone in it")
    points = np.unique(rows[column].dropna().quantile(np.linspace(0.05, 0.95, 10)).to_numpy())
    if len(points) < 2:
        raise DataError(f"the column {column!r} is nearly always the same in the sample")
    exact = np.unique(np.round(points).astype(np.int64)) if pd.api.types.is_integer_dtype(rows[column]) else points
    means = np.array([_numbers(model, rows.assign(**{column: value}))[:, -1].mean() for value in exact])
    steps = np.diff(means) * (1 if direction == "increasing" else -1)
    worst = int(steps.argmin())
    if steps[worst] < -_AGAINST * max(float(np.ptp(means)), _TOLERANCE):
        raise PromiseError(
            f"the answer is not {direction} in {column!r}: from {exact[worst]:g} to {exact[worst + 1]:g} it goes from "
            f"{means[worst]:.4g} to {means[worst + 1]:.4g} on average",
            fix="constrain the model (such as monotonic_cst), or look at what it has learned",
        )


def is_invariant(model: Model, rows: pd.DataFrame, sample: pa.Table, column: str) -> str | None:
    """No answer changes when the values of a column are shuffled among the rows.

    Raises:
        DataError: when the sample has no such column.
        PromiseError: when an answer does.
    """
    require_columns(sample.column_names, {column: "tests.invariant names it"})
    if column not in rows.columns:
        return "the model does not take it"
    shuffled = rows.assign(**{column: rows[column].sample(frac=1, random_state=0).to_numpy()})
    changed = [
        index
        for index, (one, other) in enumerate(zip(_numbers(model, rows), _numbers(model, shuffled), strict=True))
        if not _same(one, other)
    ]
    if changed:
        raise PromiseError(
            f"{len(changed)} of {len(rows)} answers change with {column!r}, which should change none",
            fix="leave it out of the features (data.drop)",
        )
    return None


def _require(rows: pd.DataFrame, column: str) -> None:
    if column not in rows.columns:
        raise DataError(f"the model takes no column {column!r}", allowed=", ".join(map(str, rows.columns)))


def fits_into(model: Model, most: int) -> str:
    """The model's files are no larger than that; return their size in words.

    Raises:
        PromiseError: when they are larger.
    """
    told = format_size(model.size)
    if model.size > most:
        raise PromiseError(f"the model takes {told}, more than {format_size(most)}")
    return told


def answers_within(model: Model, rows: pd.DataFrame, most_ms: float) -> str:
    """An answer to one row takes no more CPU time than that in the middle; return the median in words.

    Raises:
        PromiseError: when it takes more.
    """
    taken = []
    for index in range(min(len(rows), 50)):
        started = time.process_time()
        model.answer(rows.iloc[[index]])
        taken.append(time.process_time() - started)
    median = float(np.median(taken)) * 1000
    if median > most_ms:
        raise PromiseError(f"an answer to one row takes {median:.1f} CPU ms, more than {most_ms:g}")
    return f"{median:.1f} CPU ms"
