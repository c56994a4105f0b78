"""The first task of a training run: which window, which code, and whose request is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.call.code import snapshot
from airflow_mlops.call.store import Store
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.base import is_active_run, run_key
from airflow_mlops.operators.retraining import listener_of, policy_of, promotions, received, tell
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.operators.window import chosen_window, is_backfill, window_of_run
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.spec.base import parse_duration
from airflow_mlops.spec.source import source_from
from airflow_mlops.spec.stages import resolve
from airflow_mlops.spec.window import Grain, Window

if TYPE_CHECKING:
    from airflow.sdk import Context


class StartRunOperator(BaseOperator):
    """Resolve what the whole run shares, once.

    It gives ``{"window": ..., "code": ..., "requests": [...]}``, which stage operators take as ``start``. Every retrain
    request that is pending is claimed, whatever the policy holds; but a run that an event started is skipped where none
    may start: it is surplus.
    The run's window is the newest one asked for, and its own where nobody asks or a schedule's is newer.
    Messages of Pub/Sub that are for the pipeline are read from the store, and become requests first.
    A backfill claims none, and a run whose window was chosen none that asks for a newer one.

    :param pipeline: the pipeline's name. Default: the DAG's id.
    :param source: where the rows come from, as in `ExtractDataOperator`, for the newest window of a run by hand.
        (templated)
    :param time: the time column, with which a database comes in windows.
    :param settle: how long after its end a window of a database may still receive late rows.
    :param grain: the calendar piece that the windows step by.
    :param callables: the user's functions, whose packages are kept as the run's code.
    :param upstream_models: pipelines whose promotions ask for a retraining.
    :param subscriptions: subscriptions of Pub/Sub whose messages ask for one, as ``projects/P/subscriptions/S``; what
        is received is kept by `airflow_mlops.triggers.PubsubTrigger`.
    :param retrain: the policy that their requests are held against, with the keys of the declaration's ``retrain``.
        Default: each promotion starts a training.
    :param answers_requests: whether the run trains, and so answers retrain requests.
    :param isolated: whether the stages run in an environment of their own, which may have packages that are not here.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    :param base: the folder that relative paths and the user's packages are looked up from. Default: the DAG file's.
    """

    ui_color = "#f1f5f9"
    template_fields: Sequence[str] = ("pipeline", "source")

    def __init__(
        self,
        *,
        pipeline: str | None = None,
        source: str | Mapping[str, Any] | None = None,
        time: str | None = None,
        settle: timedelta | str = timedelta(0),
        grain: Grain = "day",
        callables: Sequence[str] = (),
        upstream_models: Sequence[str] = (),
        subscriptions: Sequence[str] = (),
        retrain: Mapping[str, Any] | None = None,
        answers_requests: bool = True,
        isolated: bool = False,
        store: str | None = None,
        base: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", MlopsRetryPolicy())
        super().__init__(**kwargs)
        self.pipeline, self.source, self.grain = pipeline, source, grain
        self.time, self.settle = time, settle
        self.callables, self.upstream_models = list(callables), list(upstream_models)
        self.subscriptions = list(subscriptions)
        self.retrain = dict(retrain) if retrain is not None else None
        self.answers_requests, self.isolated, self.store, self.base = answers_requests, isolated, store, base

    def execute(self, context: Context) -> dict[str, Any]:
        """Claim requests, choose the window, keep the code."""
        base = self.base or str(self.dag.folder)
        store = Store(store_root(self.store))
        name = self.pipeline or str(self.dag.dag_id)
        chosen = chosen_window(context, self.grain)
        answers = self.answers_requests and not is_backfill(context)
        claimed = self._claim(context, Requests(store, name), chosen) if answers else []
        asked = [request.window for request in claimed if request.window is not None]
        scheduled = context["dag_run"].run_type == "scheduled"
        window: Window | None = None
        if chosen or scheduled or not asked:
            source = source_from(self.source) if self.source else None
            if isinstance(source, str):
                source = resolve(base, source)
            settle = parse_duration(self.settle)
            window = window_of_run(context, self.grain, source, time=self.time, settle=settle)
        if asked and not chosen:
            # A request that has waited is answered by newer rows too; a schedule's own window is not left out for it.
            window = max([*asked, *([window] if window else [])], key=lambda each: each.start)
        code = snapshot(self.callables, base, store, elsewhere=self.isolated)
        self.log.info(
            "window: %s, code: %s", window.key if window else "all rows", code.digest if code else "installed"
        )
        return {
            "window": [window.start.isoformat(), window.end.isoformat(), window.key] if window else None,
            "code": code.model_dump(mode="json") if code else None,
            "requests": [request.id for request in claimed],
        }

    def _claim(self, context: Context, requests: Requests, chosen: Window | None) -> list[Request]:
        def is_active(run: str) -> bool:
            return is_active_run(context, run)

        rung = context["dag_run"].run_type == "asset_triggered"
        listener = listener_of(requests.model, self.source, self.time, self.grain)
        with received(requests, self.subscriptions, listener) as messages:
            wishes = [*promotions(context, requests.model, self.upstream_models), *messages]
            if self.retrain is None:
                for wish in wishes:
                    requests.open(wish)
            elif rung or wishes:
                policy = policy_of(self.retrain, f"{type(self).__name__} {requests.model!r}")
                standing = requests.standing(*wishes)
                for wish in wishes:
                    tell(requests.ask(wish, policy, standing))
                if rung:
                    requests.review(policy, standing, is_active)
        claimed = requests.claim(run_key(context), is_active, chosen, rung=rung)
        if rung and not claimed:
            raise AirflowSkipException(
                "no retrain request may start now: another run has taken it, or the policy holds it; "
                f"airflow-mlops requests {requests.model} tells"
            )
        for request in claimed:
            self.log.info("this run answers request %s: %s", request.id, request.reason)
        return claimed
