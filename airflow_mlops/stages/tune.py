"""Tuning: trials of the model that training would fit, each measured on folds of the training rows."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Protocol

import mlflow
import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import CodeError, DataError, GateError, MlopsError, RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS, Task
from airflow_mlops.spec.stages import Tune
from airflow_mlops.stages.bootstrap import Scores
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.scoring import evaluate
from airflow_mlops.stages.study import TuningStudy
from airflow_mlops.stages.study_plots import draw
from airflow_mlops.stages.tables import read_table, require_columns, to_frame
from airflow_mlops.stages.team_code import predict, user_code
from airflow_mlops.stages.train import (
    fit_model,
    fit_preprocess,
    make_estimator,
    make_features,
    raw_columns,
)

log = logging.getLogger(__name__)

STUDY_TAG, TRIAL_TAG = "mlops.study", "mlops.trial"
_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


def run(call: Call, params: Tune, store: Store) -> Outcome:
    """Try points of the space; output ``tuned``, a JSON with what was best. One of several parts has no output."""
    table = read_table(call.input("train"), store)
    require_columns(table.column_names, {params.target: "the target"})
    target = to_frame(table.select([params.target]))[params.target]
    if target.isna().any():
        raise DataError(f"the target {params.target!r} has {int(target.isna().sum())} nulls")
    metric = metric_of(params, target)
    study = TuningStudy(call, params, store, metric)
    registry = ModelRegistry.of(call, store)
    diary = Diary(registry, call.model_copy(update={"run": params.study or call.run}), study, metric)
    _try_all(study, params, metric, table, diary)
    study.keep(now=True)
    return concluded(call, study, metric, store, diary)


class Study(Protocol):
    """What is known of a study, whoever has led it."""

    @property
    def id(self) -> str:
        """Which one it is."""

    def open(self) -> optuna.Study:
        """The study as Optuna knows it."""

    def trials(self) -> list[FrozenTrial]:
        """The trials that are looked at."""

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's params as the model gets them."""


def concluded(call: Call, study: Study, metric: str, store: Store, diary: Diary) -> Outcome:
    """What the trials of a study came to, written into the diary; one of several parts has no output.

    Raises:
        CodeError: when none could be measured.
    """
    trials = study.trials()
    counts = {state: sum(trial.state == state for trial in trials) for state in _STATUS}
    measured = {
        "trials": float(len(trials)),
        "pruned": float(counts[TrialState.PRUNED]),
        "failed": float(counts[TrialState.FAIL]),
    }
    info: dict[str, str | None] = {"run_id": diary.parent, "mlflow_url": diary.url}
    if call.params.get("part") is not None:
        return outcome_of(call, metrics=measured, info=info)
    if not counts[TrialState.COMPLETE]:
        raise _no_trial(trials, metric)
    best = study.open().best_trial
    values, value = study.values(best), float(best.value or 0.0)
    log.info("trial %d of %d is best: %s %.6g with %s", best.number, len(trials), metric, value, values)
    diary.conclude(trials, values, value)
    found = {"params": values, "metric": metric, "value": value, "trial": best.number, "trials": len(trials)}
    return outcome_of(
        call,
        outputs={"tuned": store.put_json(found, "params")},
        metrics={metric: value, **measured},
        info=info,
    )


def _no_trial(trials: list[FrozenTrial], metric: str) -> MlopsError:
    reasons = [trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs]
    if not reasons:
        return CodeError("no trial was begun before the time was over", fix="a longer tune.timeout")
    return CodeError(
        f"none of {len(trials)} trials could be measured by {metric}; the first one: {reasons[0]}",
        fix="correct tune.space, or the code that it names",
    )


class Fold(NamedTuple):
    """Features of the rows that a trial is fitted on and of those that it is measured on, and their targets."""

    fitted: Any
    target: pd.Series[Any]
    held: Any
    truth: np.ndarray[Any, Any]


def _try_all(study: TuningStudy, params: Tune, metric: str, table: pa.Table, diary: Diary) -> None:
    """Begin or go on with trials until this part has had its share, and write each into the diary as it ends."""
    before = study.trials()
    unfinished = [trial for trial in before if not trial.state.is_finished()]
    diary.catch_up(trial for trial in before if trial.state.is_finished())
    slots: list[int | None] = [trial._trial_id for trial in unfinished]
    slots += [None] * (study.share - len(before))
    if before:
        done = len(before) - len(unfinished)
        log.info("%d of %d trials are done; %d were interrupted, and go on", done, study.share, len(unfinished))
    if not slots:
        return
    folds, classes = folds_of(table, params, metric)
    stop = Event()

    def one(slot: int | None) -> FrozenTrial | None:
        if slot is None and (stop.is_set() or _is_over(study)):
            return None
        return _one_trial(study, study.begin() if slot is None else slot, metric, folds, classes, stop)

    for trial in _all_of(one, slots, params.jobs, stop):
        if trial is not None:
            diary.write(trial)
            study.keep()


def _all_of(one: Any, slots: list[int | None], jobs: int, stop: Event) -> Iterator[FrozenTrial | None]:
    """Do trials one after another in this thread, or several at once, each on its share of the cores."""
    if jobs == 1:
        yield from map(one, slots)
        return
    each = max(1, (os.cpu_count() or 1) // jobs)
    libraries = ThreadpoolController()

    def own_share() -> None:
        # OpenMP keeps the number for each thread that asks; BLAS has one for all, which is set around them.
        libraries.select(user_api="openmp").limit(limits=each)

    with libraries.limit(limits=each, user_api="blas"):
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="trial", initializer=own_share)
        try:
            for done in as_completed([pool.submit(one, slot) for slot in slots]):
                yield done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _is_over(study: TuningStudy) -> bool:
    limit = study.params.timeout
    begun = [trial.datetime_start for trial in study.open().get_trials(deepcopy=False) if trial.datetime_start]
    return limit is not None and bool(begun) and datetime.now() - min(begun) > limit


def _one_trial(
    study: TuningStudy, trial_id: int, metric: str, folds: list[Fold], classes: Any, stop: Event
) -> FrozenTrial | None:
    """Measure one point of the space on every fold, or on as many as the pruner lets it; None if told to stop."""
    trial, values = study.suggest(trial_id)
    scores: list[float] = []
    try:
        for step, fold in enumerate(folds):
            if stop.is_set():
                return None
            scores.append(measure_fold(fold, study.params, values, metric, classes))
            trial.report(float(np.mean(scores)), step)
            if step + 1 < len(folds) and trial.should_prune():
                return trial.study.tell(trial, state=TrialState.PRUNED)
    except (CodeError, GateError) as error:
        if isinstance(error, CodeError) and error.__cause__ is None:
            # Not this point of the space is wrong, but what was declared: a param that is none, a class that is none.
            raise
        log.warning("trial %d failed: %s", trial.number, error)
        trial.set_user_attr("reason", error.what[:1000])
        return trial.study.tell(trial, state=TrialState.FAIL)
    value = float(np.mean(scores))
    log.info("trial %d: %s %.6g with %s", trial.number, metric, value, values)
    return trial.study.tell(trial, value)


def measure_fold(fold: Fold, params: Tune, values: dict[str, Any], metric: str, classes: Any) -> float:
    """Fit a point of the space on the rows of a fold, and measure it on those that are held out."""
    point = params.model_copy(update={"model_params": {**params.model_params, **values}})
    model = fit_model(fold.fitted, fold.target, point)
    return evaluate(metric, _scores(model, fold, classes, metric))


def metric_of(params: Tune, target: pd.Series[Any]) -> str:
    """The metric declared, or the first of the task's usual ones that the estimator's answers allow.

    Raises:
        CodeError: when neither is declared and a function does not tell.
    """
    if params.metric is not None:
        if params.metric not in METRICS:
            raise GateError(f"there is no metric {params.metric!r}", allowed=", ".join(METRICS))
        return params.metric
    task, probabilities = params.ml_task, True
    if params.estimator:
        model = make_estimator(params)
        probabilities = hasattr(model, "predict_proba")
        task = task or _task_of(model, target)
    if task is None:
        raise CodeError(
            "a function does not say what its model predicts, and so by which metric", fix="declare tune.metric"
        )
    return next(name for name in DEFAULT_METRICS[task] if probabilities or METRICS[name].needs == "label")


def _task_of(model: Any, target: pd.Series[Any]) -> Task | None:
    from sklearn.base import is_classifier, is_regressor

    if is_regressor(model):
        return "regression"
    if is_classifier(model):
        return "binary" if target.nunique() <= 2 else "multiclass"
    return None


def _scores(model: Any, fold: Fold, classes: Any, metric: str) -> Scores:
    """What a model says of the rows held out."""
    if classes is None:
        return Scores(fold.truth, predict(model, fold.held).astype(float))
    if hasattr(model, "predict_proba"):
        with user_code(f"predict_proba of {type(model).__name__}"):
            probability = np.zeros((len(fold.truth), len(classes)))
            probability[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(fold.held)
        return Scores(fold.truth, probability.argmax(axis=1), probability)
    if METRICS[metric].needs == "probability":
        raise CodeError(
            f"{type(model).__name__} gives labels without probabilities, which {metric!r} is made of",
            fix="declare tune.metric: one that is made of labels, such as accuracy",
        )
    said = np.searchsorted(classes, predict(model, fold.held))
    return Scores(fold.truth, said, np.eye(len(classes))[said])


def folds_of(table: pa.Table, params: Tune, metric: str) -> tuple[list[Fold], Any]:
    """The folds, with preprocessing fitted on the rows of each, which is the same for every trial; and the classes.

    The metric says whether there are any.
    """
    classes = None if "regression" in METRICS[metric].tasks else np.unique(table[params.target].to_numpy())
    target = to_frame(table.select([params.target]))[params.target]
    truth = target.to_numpy(dtype=float) if classes is None else np.searchsorted(classes, target.to_numpy())
    features = make_features(to_frame(table.select(raw_columns(table.column_names, params))), params)
    folds = []
    for fitted, held in fold_rows(table, params, None if classes is None else truth):
        preprocess, values = fit_preprocess(features.iloc[fitted], target.iloc[fitted], params)
        rest = features.iloc[held]
        if preprocess is not None:
            with user_code(params.preprocess or "the default preprocessing"):
                rest = preprocess.transform(rest)
        folds.append(Fold(values, target.iloc[fitted], rest, truth[held]))
    return folds, classes


def fold_rows(
    table: pa.Table, params: Tune, strata: np.ndarray[Any, Any] | None
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """For every fold the places of the rows that are fitted on, and of those that are held out.

    By time, a fold holds out a later piece of the rows and fits on all rows before it, and no instant is on both sides.
    Else rows (whole groups) are drawn by their hash, classes in equal shares, and equal rows stay together.

    Args:
        table: the training rows.
        params: says by what, and how many.
        strata: the rows' classes, shape ``(rows,)``, or None for regression.

    Raises:
        DataError: when a fold would have no rows on one side.
    """
    if params.time:
        require_columns(table.column_names, {params.time: "the time column"})
        at = table[params.time].to_pandas()
        if at.isna().any():
            raise DataError(f"the time column {params.time!r} has {int(at.isna().sum())} nulls")
        order = np.sort(at.to_numpy())
        cuts = [order[len(order) * piece // (params.folds + 1)] for piece in range(1, params.folds + 1)]
        past = [at.to_numpy() >= cut for cut in cuts] + [np.zeros(len(at), dtype=bool)]
        masks = [(~past[piece], past[piece] & ~past[piece + 1]) for piece in range(params.folds)]
    else:
        columns = [params.group] if params.group else table.column_names
        require_columns(table.column_names, dict.fromkeys(columns, "the folds"))
        # Another seed than that of the split: among the training rows its hashes are not uniform.
        hashes = row_hashes(to_frame(table.select(columns)), params.seed + 1)
        fold = np.zeros(table.num_rows, dtype=np.int64)
        layers = np.zeros(table.num_rows) if strata is None or params.group else strata
        for layer in np.unique(layers):
            fold[layers == layer] = np.unique(hashes[layers == layer], return_inverse=True)[1] % params.folds
        masks = [(fold != piece, fold == piece) for piece in range(params.folds)]
    if not all(fitted.any() and held.any() for fitted, held in masks):
        raise DataError(
            f"{table.num_rows} training rows do not make {params.folds} folds"
            + (f" by {params.time!r}" if params.time else f" by {params.group!r}" if params.group else ""),
            fix="fewer tune.folds, or read more windows (train.windows)",
        )
    return [(np.flatnonzero(fitted), np.flatnonzero(held)) for fitted, held in masks]


class Diary:
    """The study in MLflow: a run for every trial, under the pipeline's own, written once whoever is killed.

    Args:
        registry: where.
        call: the Call of the run that the study belongs to.
        study: the study.
        metric: what is measured.
    """

    def __init__(self, registry: ModelRegistry, call: Call, study: Study, metric: str) -> None:
        self._registry, self._study, self._metric = registry, study, metric
        self.parent = registry.run_of(call)
        self.url = registry.run_url(self.parent)
        self._experiment = registry.api.experiment_id(registry.ref.experiment)
        self._half: dict[str, str] = {}

    def catch_up(self, trials: Iterator[FrozenTrial] | list[FrozenTrial]) -> None:
        """Write what an earlier try did not come to write, and to its end what it did not end."""
        found = self._registry.api.find_runs(self._experiment, STUDY_TAG, self._study.id)
        self._half = {run.tags[TRIAL_TAG]: run.run_id for run in found if run.status == "RUNNING"}
        written = {run.tags[TRIAL_TAG] for run in found if run.status != "RUNNING"}
        for trial in trials:
            if str(trial.number) not in written:
                self.write(trial)

    def write(self, trial: FrozenTrial) -> None:
        """Write a trial that has ended."""
        api, number = self._registry.api, str(trial.number)
        tags = {
            "mlflow.parentRunId": self.parent,
            STUDY_TAG: self._study.id,
            TRIAL_TAG: number,
            "mlops.state": trial.state.name.lower(),
        }
        if "reason" in trial.user_attrs:
            tags["mlops.reason"] = trial.user_attrs["reason"]
        run_id = self._half.pop(number, None) or api.create_run(
            self._experiment, f"trial {number}", tags, at=trial.datetime_start
        )
        means = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        measured = {f"tune.{self._metric}": means[-1]} if means else {}
        # The fold's own value, from the means before and after it.
        measured |= {
            f"tune.fold_{step}": mean * (step + 1) - (means[step - 1] * step if step else 0.0)
            for step, mean in enumerate(means)
        }
        shown = {f"model.{name}": str(value)[:500] for name, value in self._study.values(trial).items()}
        api.log(run_id, metrics=measured, params=shown)
        api.end_run(run_id, _STATUS[trial.state], at=trial.datetime_complete)

    def conclude(self, trials: list[FrozenTrial], values: dict[str, Any], value: float) -> None:
        """Write into the pipeline's own run what was found, and the plots."""
        self._registry.api.log(
            self.parent,
            metrics={f"tune.{self._metric}": value, "tune.trials": float(len(trials))},
            tags={f"mlops.best.{name}": str(each)[:500] for name, each in values.items()},
        )
        uri = self._registry.ref.uri
        with tempfile.TemporaryDirectory() as folder, pointed_at(uri):
            draw(self._study.open(), self._metric, Path(folder))
            try:
                mlflow.MlflowClient().log_artifacts(self.parent, folder, "tune")
            except (OSError, mlflow.exceptions.MlflowException) as error:
                raise RegistryUnreachableError(f"MLflow at {uri} takes no plots: {error}") from error
