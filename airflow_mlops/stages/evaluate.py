"""Evaluation: the model on held-out rows, whole and by slice, and the champion on the very same rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn import metrics as sk

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import DataError, GateError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import Version, pointed_at
from airflow_mlops.registry.models import MODEL_DIGEST_TAG, ModelRegistry
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS, metrics_of
from airflow_mlops.spec.stages import Evaluate
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.model_io import ROWS, Facts, Model, download, loaded, raw_rows, read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.tables import read_table, require_columns, to_frame, write_table

log = logging.getLogger(__name__)

_MIN_SLICE_ROWS = 30
_MAX_SLICES = 50


def run(call: Call, params: Evaluate, store: Store) -> Outcome:
    """Score the rows of ``test``; output ``evaluation``, a JSON with every metric and the scored rows' reference."""
    table = read_table(call.input("test"), store)
    registry = ModelRegistry.of(call, store)
    run_id = registry.run_of_model(call.input("model").uri)
    with tempfile.TemporaryDirectory() as scratch, pointed_at(registry.ref.uri):
        folder = Path(scratch)
        facts = read_facts(run_id, folder / "facts")
        if facts.model_digest != call.input("model").digest:
            raise GateError("the model is not the one that its run has logged", fix="rerun the training")
        require_columns(table.column_names, {facts.target: "the target"})
        truth = encode(to_frame(table.select([facts.target]))[facts.target], facts)
        with loaded(facts, folder / "model") as model:
            scores = score(model, table, truth)
            names = metric_names(params, facts, probabilities=model.gives_probabilities)
        values = {name: evaluate(name, scores) for name in names}
        slices = {column: _by_slice(table, column, scores, names) for column in params.slices if _has(table, column)}
        scored = _columns("challenger", scores)
        champion = _champion(registry)
        if champion is not None and champion.tags.get(MODEL_DIGEST_TAG) == facts.model_digest:
            log.info("the model is champion %s already; there is nothing to compare", champion.version)
            champion = None
        if champion is not None and params.versus_champion:
            scored |= _score_champion(champion, facts, table, truth, folder)
        if params.plots:
            _log_plots(run_id, scores, facts, folder / "plots", registry.ref.uri)
    predictions = write_table(pa.table({"truth": pa.array(truth), **scored}), store, "predictions")
    evaluation = store.put_json(
        {
            "task": facts.task,
            "classes": list(facts.classes),
            "primary": names[0],
            "metrics": values,
            "slices": slices,
            "rows": table.num_rows,
            "model": facts.model_digest,
            "champion": champion.version if champion else None,
            "predictions": predictions.digest,
        },
        "evaluation",
    )
    registry.api.log(
        run_id,
        metrics={
            **{f"test.{name}": value for name, value in values.items()},
            **{
                f"test.{name}.{_safe(column)}.{_safe(value)}": each
                for column, by_value in slices.items()
                for value, measured in by_value.items()
                for name, each in measured.items()
                if name != "rows"
            },
        },
    )
    return outcome_of(
        call,
        outputs={"evaluation": evaluation, "predictions": predictions},
        metrics={**values, "test_rows": float(table.num_rows)},
        info={
            "run_id": run_id,
            "champion": champion.version if champion else None,
            "mlflow_url": registry.run_url(run_id),
        },
    )


def _safe(text: str) -> str:
    """A name that MLflow takes as part of a metric's key."""
    return "".join(character if character.isalnum() or character in "-_. /" else "_" for character in text)


def _has(table: pa.Table, column: str) -> bool:
    require_columns(table.column_names, {column: "evaluate.slices"})
    return True


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
    rows = raw_rows(table, model.facts)
    probability = model.probability(rows)
    if model.facts.task == "regression":
        return Scores(truth, np.asarray(model.predict(rows), dtype=float))
    if probability is None:
        index = {value: position for position, value in enumerate(model.facts.classes)}
        said = np.array([index[value] for value in np.asarray(model.predict(rows)).tolist()], dtype=np.int64)
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


def _by_slice(table: pa.Table, column: str, scores: Scores, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Every metric for every value of a column; values too rare, or on which a metric is not defined, have fewer."""
    raw = to_frame(table.select([column]))[column]
    values = raw.astype(object).where(raw.notna(), "null").astype(str)
    found: dict[str, dict[str, float]] = {}
    for value, count in values.value_counts().head(_MAX_SLICES).items():
        measured = {"rows": float(count)}
        if count >= _MIN_SLICE_ROWS:
            inside = (values == value).to_numpy()
            part = Scores(
                scores.truth[inside],
                scores.prediction[inside],
                None if scores.probability is None else scores.probability[inside],
            )
            for name in names:
                try:
                    measured[name] = evaluate(name, part)
                except GateError as error:
                    log.info("slice %s=%s: %s", column, value, error.what)
        found[str(value)] = measured
    return found


def _columns(who: str, scores: Scores) -> dict[str, pa.Array]:
    """Scores as columns: the prediction, and a probability a class."""
    columns = {f"{who}.prediction": pa.array(scores.prediction)}
    if scores.probability is not None:
        for index in range(scores.probability.shape[1]):
            columns[f"{who}.probability.{index}"] = pa.array(np.ascontiguousarray(scores.probability[:, index]))
    return columns


def _champion(registry: ModelRegistry) -> Version | None:
    champion = registry.champion()
    if champion is None:
        log.info("%r has no champion yet; the absolute limits alone decide", registry.ref.model)
    return champion


def _score_champion(
    champion: Version, facts: Facts, table: pa.Table, truth: np.ndarray[Any, Any], scratch: Path
) -> dict[str, pa.Array]:
    """Let the champion score the rows, and say of each row whether the champion was trained on it."""
    theirs = read_facts(champion.run_id, scratch / "champion")
    if (theirs.task, theirs.classes) != (facts.task, facts.classes):
        raise GateError(
            f"champion {champion.version} answers another question: {theirs.task} with classes {list(theirs.classes)}, "
            f"not {facts.task} with {list(facts.classes)}",
            fix="give the pipeline another name, or set validate_model.versus_champion: null once",
        )
    with loaded(theirs, scratch / "champion_model") as model:
        columns = _columns("champion", score(model, table, truth))
    trained_on = pq.read_table(download(champion.run_id, ROWS, scratch / "champion"))["hash"].to_numpy()
    require_columns(table.column_names, dict.fromkeys(theirs.hash_columns, "the champion was trained with it"))
    seen = np.isin(row_hashes(to_frame(table.select(list(theirs.hash_columns)))), trained_on)
    return {**columns, "champion.seen": pa.array(seen)}


def _log_plots(run_id: str, scores: Scores, facts: Facts, folder: Path, uri: str) -> None:
    from airflow_mlops.stages.plots import draw

    folder.mkdir()
    draw(scores, facts, folder)
    try:
        mlflow.MlflowClient().log_artifacts(run_id, str(folder), "plots")
    except (OSError, mlflow.exceptions.MlflowException) as error:
        raise RegistryUnreachableError(f"MLflow at {uri} takes no plots: {error}") from error
