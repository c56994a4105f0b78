"""The sensor that closes the loop: the next window arrives, a worker judges it, and drift asks for retraining."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.operators.links import REPORT_URL, RUN_URL
from airflow_mlops.sensors.base import MonitorSensor
from airflow_mlops.spec import stages


class DataDriftSensor(MonitorSensor):
    """Wait for the next window's data, compare it with the champion's reference, and on drift ask for a retraining.

    The window is the one after all that were judged and that the champion was trained on, or the one given. Waiting
    takes no worker: the task is deferred (``deferrable=True``) or rescheduled (``mode="reschedule"``). The comparison
    runs on a worker. Its verdict and Evidently's report are kept in an MLflow run. On drift, and only where the
    policy lets a training start, the asset ``x-mlops://PIPELINE/retrain`` is updated, with the request's id and reason
    as its extra.

    :param source: where the rows come from, as in `ExtractDataOperator`. (templated)
    :param format: ``parquet`` or ``csv``. Default: from the file's suffix.
    :param time: the time column, as in `ExtractDataOperator`.
    :param grain: the calendar piece that ``{window}`` steps by.
    :param last: how many windows are judged together.
    :param settle: how long after its end a window of a database, or of one file with ``time``, may still receive late
        rows: it is judged when that is over.
    :param snapshots: ``reuse`` or ``refresh``, as in `ExtractDataOperator`.
    :param data_drift: when a window counts as drifted: ``{"false_alarm_rate": 0.01, "min_effect": 0.1, ...}``.
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

    stage = stages.Monitor
    links = (RUN_URL, REPORT_URL)

    def __init__(
        self,
        *,
        source: str | Mapping[str, Any],
        format: Literal["parquet", "csv"] | None = None,
        time: str | None = None,
        grain: str = "day",
        last: int = 1,
        settle: timedelta | str = timedelta(0),
        snapshots: Literal["reuse", "refresh"] = "reuse",
        data_drift: Mapping[str, Any] | None = None,
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
            "source": source,
            "format": format,
            "time": time,
            "grain": grain,
            "last": last,
            "settle": settle,
            "snapshots": snapshots,
            "data_drift": dict(data_drift or {}),
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
        """The window's own data."""
        told: dict[str, Any] = params.model_dump(mode="json", include={"source", "settle"})
        return told
