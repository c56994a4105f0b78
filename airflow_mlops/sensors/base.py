"""What the monitoring sensors share: they wait without a worker, judge one window on one, and say what follows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Outcome
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.assets import retrain_alias, retrain_asset
from airflow_mlops.operators.base import StageTask, run_key
from airflow_mlops.operators.retraining import policy_of, reconsider, request_of
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.registry.verdicts import SENSORS, TRIGGERS, Sensor, Verdicts
from airflow_mlops.spec.window import Window, parse_key
from airflow_mlops.triggers.window import WindowTrigger, arrived

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

_KEPT = 100
"""How many windows the asset's state shows."""


class MonitorSensor(StageTask, BaseSensorOperator):
    """A sensor that judges one window and keeps the verdict: in the store, in an MLflow run and in the asset's state.

    The verdicts in the store are the truth; the asset's state is made of them anew each time, so nothing is lost where
    it could not be written.
    """

    ui_color = "#fee2e2"

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        retrain: Mapping[str, Any] | None,
        pipeline: str | None,
        window: str | None,
        registry_conn_id: str,
        store: str | None,
        base: str | None,
        backend: str,
        backend_options: Mapping[str, Any] | None,
        deferrable: bool,
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

    @property
    def sensor(self) -> Sensor:
        """What it watches."""
        return SENSORS[self.stage.stage]

    def waits_for(self, params: Any, store: str) -> dict[str, Any]:
        """What `airflow_mlops.triggers.window.arrived` is told beside what every sensor says."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Judge the window if its data is there; else wait, without a worker."""
        if not self.deferrable:
            return super().execute(context)
        waiting = self._waiting(context)
        window = arrived(waiting)
        if window is None:
            trigger = WindowTrigger(waiting, self.poke_interval)
            self.defer(trigger=trigger, method_name="resume_window", timeout=timedelta(seconds=self.timeout))
            return None
        return self._judge(context, window)

    def poke(self, context: Context) -> PokeReturnValue:
        """Judge the window if its data is there."""
        window = arrived(self._waiting(context))
        return PokeReturnValue(window is not None, self._judge(context, window) if window else None)

    def resume_window(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on when the trigger has seen the data arrive."""
        waiting = self._waiting(context)
        window = parse_key(waiting["grain"], event["window"]) if event["window"] else arrived(waiting)
        return self._judge(context, window) if window else self.execute(context)

    def _waiting(self, context: Context) -> dict[str, Any]:
        params: Any = self.stage_params()
        chosen = self.window or (context.get("params") or {}).get("window")
        root = store_root(self.store)
        return {
            "store": root,
            "pipeline": self.pipeline_name,
            "grain": params.grain,
            "run": run_key(context),
            "window": chosen or None,
            **self.waits_for(params, root),
        }

    def _judge(self, context: Context, window: Window) -> dict[str, Any]:
        call = self.make_call(context, window)
        verdicts = Verdicts(Store(call.store), call.pipeline, self.sensor)
        verdicts.take(call.run, window)
        try:
            return self.finish(context, self.carry(context, call))
        except Exception as error:
            # A window that cannot be judged fails its run once. Were it not written down, a continuous monitor would
            # start on the same window again at once, for ever.
            if not (isinstance(error, MlopsError) and error.retryable):
                verdicts.record_failure(call, str(error))
            raise

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Ask for a retraining on drift, look again at the requests that wait, and show the history on the asset."""
        store, trigger = Store(store_root(self.store)), TRIGGERS[self.sensor]
        policy = policy_of(self.retrain, f"{type(self).__name__} {self.pipeline_name!r}")
        wish = request_of(outcome, self.pipeline_name, trigger) if outcome.verdict.status == "drift" else None
        reconsider(context, store, self.pipeline_name, policy, self.alias, wish)
        if self.alias is not None:
            self._show(context, store)
        return super().finish(context, outcome)

    def _show(self, context: Context, store: Store) -> None:
        newest = Verdicts(store, self.pipeline_name, self.sensor).newest(_KEPT)
        history: dict[str, JsonValue] = {
            key: {name: verdict.get(name) for name in ("status", "champion", "at", "run")}
            for key, verdict in newest.items()
        }
        state = context["asset_state_store"][retrain_asset(self.pipeline_name)]
        state.set(self.sensor, history)
