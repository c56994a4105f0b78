"""The sensors that watch logged predictions: what the model says, and, when labels come, how good that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from airflow_mlops.call.store import Store
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.operators.links import REPORT_URL, RUN_URL
from airflow_mlops.sensors.base import MonitorSensor
from airflow_mlops.spec import stages
from airflow_mlops.spec.base import format_duration

_PARTITION = "window={window}/*.parquet"


class PredictionDriftSensor(MonitorSensor):
    """Wait for the next window's predictions, and compare them with what the model said of its held-out rows.

    The window is the oldest after the champion's training that was predicted and not judged, or the one given. The
    probabilities are compared, or of a model without any its predictions, by the same decision as data. Waiting takes
    no worker. The verdict is kept in the store, in an MLflow run and in the state of the asset
    ``x-mlops://PIPELINE/retrain``; on drift a retraining is asked for by the trigger ``prediction_drift``. A run that
    is retried or cleared judges the window that it has taken, once.

    :param destination: the folder of predictions, as in `BatchPredictOperator`. Default: ``predictions/<pipeline>`` in
        the store.
    :param time: the time column, where predictions keep it.
    :param grain: the calendar piece that windows step by.
    :param prediction_drift: when a window counts as drifted: ``{"false_alarm_rate": 0.01, "min_effect": 0.1, ...}``.
    :param quiet: how long after its last prediction a window that was served counts as whole.
    :param retrain: what becomes of the request, with the keys of the declaration's ``retrain``: ``{"mode": "observe"}``
        only records it, ``{"mode": "suggest"}`` updates ``x-mlops://PIPELINE/suggestion`` instead.
    :param pipeline: the pipeline's name. Default: the DAG's id. (templated)
    :param window: the key of the window to judge. Default: the next one, or the DAG param ``window``. (templated)
    :param registry_conn_id: the connection of type ``mlflow``.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    :param base: the folder that relative paths are looked up from. Default: the DAG file's.
    :param backend: where the comparison runs.
    :param backend_options: what the backend is made with.
    :param deferrable: wait in the triggerer instead of being rescheduled.
    """

    stage = stages.MonitorPredictions
    links = (RUN_URL, REPORT_URL)

    def __init__(
        self,
        *,
        destination: str | None = None,
        time: str | None = None,
        grain: str = "day",
        prediction_drift: Mapping[str, Any] | None = None,
        quiet: timedelta | str = timedelta(minutes=5),
        retrain: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        window: str | None = None,
        registry_conn_id: str = MlflowHook.default_conn_name,
        store: str | None = None,
        base: str | None = None,
        backend: str = "local",
        backend_options: Mapping[str, Any] | None = None,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        settings = {
            "destination": destination,
            "time": time,
            "grain": grain,
            "prediction_drift": dict(prediction_drift or {}),
            "quiet": quiet,
        }
        super().__init__(
            settings=settings,
            retrain=retrain,
            pipeline=pipeline,
            window=window,
            registry_conn_id=registry_conn_id,
            store=store,
            base=base,
            backend=backend,
            backend_options=backend_options,
            deferrable=deferrable,
            **kwargs,
        )

    def waits_for(self, params: Any, store: str) -> dict[str, Any]:
        """The window's predictions."""
        return {
            "sensor": self.sensor,
            "predictions": _partitions(params.destination, store, self.pipeline_name),
            "quiet": format_duration(params.quiet),
        }


class ModelPerformanceSensor(MonitorSensor):
    """Wait for a window's labels, join them to its predictions, and hold the metric against its value at promotion.

    The window is the oldest since the first champion's training that was predicted, whose labels are due and there, and
    that was not judged; or the one given. ``insufficient_data`` says how many labels of how many predictions have come;
    such a window is judged again when more have. It is ``drift`` when all of the loss's confidence interval lies
    above ``drop``; then a retraining is asked for by the trigger ``performance``. Waiting takes no worker. The verdict
    is kept in the store, in an MLflow run and in the state of the asset ``x-mlops://PIPELINE/retrain``.

    :param labels: where the labels are, in the forms of ``source`` of `ExtractDataOperator`. (templated)
    :param key: the columns by which labels and predictions are joined.
    :param target: the column of the labels.
    :param destination: the folder of predictions, as in `BatchPredictOperator`. Default: ``predictions/<pipeline>`` in
        the store.
    :param format: ``parquet`` or ``csv``. Default: from the suffix of the labels' files.
    :param time: the labels' time column; rows outside the window are left out. Default: all are read.
    :param grain: the calendar piece that windows step by.
    :param label_delay: how long after a window's end its labels are complete.
    :param metric: the metric, one of those evaluated. Default: the primary one of the task.
    :param drop: the loss that is worth a retraining: in the metric's unit, or of ``rmse``, ``mae`` and ``median_ae`` a
        share of the value at promotion.
    :param min_labels: fewer labelled predictions than this decide nothing.
    :param confidence: the confidence of the interval of the loss.
    :param quiet: how long after its last prediction a window that was served counts as whole.
    :param retrain: what becomes of the request, with the keys of the declaration's ``retrain``: ``{"mode": "observe"}``
        only records it, ``{"mode": "suggest"}`` updates ``x-mlops://PIPELINE/suggestion`` instead.
    :param pipeline: the pipeline's name. Default: the DAG's id. (templated)
    :param window: the key of the window to judge. Default: the next one, or the DAG param ``window``. (templated)
    :param registry_conn_id: the connection of type ``mlflow``.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    :param base: the folder that relative paths are looked up from. Default: the DAG file's.
    :param backend: where the comparison runs.
    :param backend_options: what the backend is made with.
    :param deferrable: wait in the triggerer instead of being rescheduled.
    """

    stage = stages.MonitorPerformance

    def __init__(
        self,
        *,
        labels: str | Mapping[str, Any],
        key: Sequence[str],
        target: str,
        destination: str | None = None,
        format: Literal["parquet", "csv"] | None = None,
        time: str | None = None,
        grain: str = "day",
        label_delay: timedelta | str = timedelta(0),
        metric: str | None = None,
        drop: float = 0.03,
        min_labels: int = 200,
        confidence: float = 0.95,
        quiet: timedelta | str = timedelta(minutes=5),
        retrain: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        window: str | None = None,
        registry_conn_id: str = MlflowHook.default_conn_name,
        store: str | None = None,
        base: str | None = None,
        backend: str = "local",
        backend_options: Mapping[str, Any] | None = None,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        settings = {
            "labels": labels,
            "key": list(key),
            "target": target,
            "destination": destination,
            "format": format,
            "time": time,
            "grain": grain,
            "label_delay": label_delay,
            "metric": metric,
            "drop": drop,
            "min_labels": min_labels,
            "confidence": confidence,
            "quiet": quiet,
        }
        super().__init__(
            settings=settings,
            retrain=retrain,
            pipeline=pipeline,
            window=window,
            registry_conn_id=registry_conn_id,
            store=store,
            base=base,
            backend=backend,
            backend_options=backend_options,
            deferrable=deferrable,
            **kwargs,
        )

    def waits_for(self, params: Any, store: str) -> dict[str, Any]:
        """The window's predictions and its labels."""
        dumped = params.model_dump(mode="json", include={"labels"})
        return {
            "sensor": self.sensor,
            "predictions": _partitions(params.destination, store, self.pipeline_name),
            "labels": dumped["labels"],
            "label_delay": format_duration(params.label_delay),
            "quiet": format_duration(params.quiet),
        }


def _partitions(destination: str | None, store: str, pipeline: str) -> str:
    folder = destination or Store(store).uri("predictions", pipeline)
    return f"{folder.rstrip('/')}/{_PARTITION}"
