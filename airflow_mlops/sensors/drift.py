"""The sensor that closes the loop: the next window arrives, a worker judges it, and drift asks for retraining."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Outcome
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.mlflow import MlflowHook, store_root
from airflow_mlops.operators.assets import retrain_alias, retrain_asset
from airflow_mlops.operators.base import StageTask, run_key
from airflow_mlops.operators.links import REPORT_URL, RUN_URL
from airflow_mlops.operators.retraining import policy_of, reconsider, request_of
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec import stages
from airflow_mlops.spec.window import Window, parse_key
from airflow_mlops.triggers.window import WindowTrigger, arrived_window

if TYPE_CHECKING:
    from airflow.sdk import Context


class DataDriftSensor(StageTask, BaseSensorOperator):
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
    ui_color = "#fee2e2"

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
        kwargs.setdefault("retry_policy", MlopsRetryPolicy())
        kwargs.setdefault("mode", "reschedule")
        self.alias = retrain_alias(pipeline) if pipeline else None
        if self.alias is not None:
            # An alias, because a plain asset would be updated by every success; the inlet keeps the two in one picture.
            kwargs.setdefault("outlets", [self.alias])
            kwargs.setdefault("inlets", [retrain_asset(str(pipeline))])
        super().__init__(**kwargs)
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
        self.configure(
            settings,
            pipeline=pipeline,
            start=None,
            window=window,
            registry_conn_id=registry_conn_id,
            store=store,
            base=base,
            backend=backend,
            backend_options=backend_options,
            poll_interval=self.poke_interval,
        )
        self.retrain, self.deferrable = dict(retrain or {}), deferrable

    def execute(self, context: Context) -> Any:
        """Judge the window if its data is there; else wait, without a worker."""
        if not self.deferrable:
            return super().execute(context)
        window = arrived_window(**self._waiting(context))
        if window is None:
            trigger = WindowTrigger(self._waiting(context), self.poke_interval)
            self.defer(trigger=trigger, method_name="resume_window", timeout=timedelta(seconds=self.timeout))
            return None
        return self._judge(context, window)

    def poke(self, context: Context) -> PokeReturnValue:
        """Judge the window if its data is there."""
        window = arrived_window(**self._waiting(context))
        return PokeReturnValue(window is not None, self._judge(context, window) if window else None)

    def resume_window(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on when the trigger has seen the data arrive."""
        waiting = self._waiting(context)
        window = parse_key(waiting["grain"], event["window"]) if event["window"] else arrived_window(**waiting)
        return self._judge(context, window) if window else self.execute(context)

    def _waiting(self, context: Context) -> dict[str, Any]:
        params: Any = self.stage_params()
        chosen = self.window or (context.get("params") or {}).get("window")
        return {
            "store": store_root(self.store),
            "pipeline": self.pipeline_name,
            **params.model_dump(mode="json", include={"source", "settle"}),
            "grain": params.grain,
            "run": run_key(context),
            "window": chosen or None,
        }

    def _judge(self, context: Context, window: Window) -> dict[str, Any]:
        call = self.make_call(context, window)
        try:
            return self.finish(context, self.carry(context, call))
        except Exception as error:
            # A window that cannot be judged fails its run once. Were it not written down, a continuous monitor would
            # start on the same window again at once, for ever.
            if not (isinstance(error, MlopsError) and error.retryable):
                Verdicts(Store(call.store), call.pipeline).record_failure(call, str(error))
            raise

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Ask for a retraining on drift, and look again at the requests that wait."""
        policy = policy_of(self.retrain, f"{type(self).__name__} {self.pipeline_name!r}")
        wish = request_of(outcome, self.pipeline_name, "drift") if outcome.verdict.status == "drift" else None
        reconsider(context, Store(store_root(self.store)), self.pipeline_name, policy, self.alias, wish)
        return super().finish(context, outcome)
