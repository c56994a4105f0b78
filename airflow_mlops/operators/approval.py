"""The questions whether to retrain and whether to promote: asked of a person in Airflow, and answered on record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.call.store import Store
from airflow_mlops.hooks.mlflow import MlflowHook, store_root
from airflow_mlops.operators.assets import retrain_alias, retrain_asset
from airflow_mlops.operators.base import StageTask, is_active_run, run_key
from airflow_mlops.operators.retraining import listener_of, policy_of, promotions, received, ring, tell
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec import stages
from airflow_mlops.spec.base import format_duration, parse_duration
from airflow_mlops.spec.window import Grain

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.call.wire import Outcome


class ApproveRetrainingOperator(ApprovalOperator):
    """Ask a person whether the training that was suggested may start; Airflow's own approval, which holds no worker.

    The question says what moved, in which window, who the champion is and how old, what a training would read, and
    leads to the report. Approval updates the asset ``x-mlops://PIPELINE/retrain``; a no, and silence until the timeout,
    starts the cooldown. Either is on record with who said it. A suggestion that a training has answered meanwhile is
    asked about no more, and the task is skipped where nothing is suggested. Schedule its DAG on
    ``suggestion_asset(PIPELINE)``, with ``max_active_runs=1``: several suggestions that wait are one question.

    :param pipeline: the pipeline's name.
    :param retrain: the policy, with the keys of the declaration's ``retrain``; its ``approval`` says who is asked, and
        for how long.
    :param source: what a training would read, as in `ExtractDataOperator`.
    :param grain: the calendar piece that the windows step by.
    :param windows: how many windows a training would read.
    :param estimator: what it would fit.
    :param upstream_models: pipelines whose promotions are suggestions too.
    :param subscriptions: subscriptions of Pub/Sub whose messages are, as in `StartRunOperator`.
    :param time: the time column, with which a database comes in windows.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    """

    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        pipeline: str,
        retrain: Mapping[str, Any] | None = None,
        source: str | Mapping[str, Any] | None = None,
        grain: Grain = "day",
        windows: int = 1,
        estimator: str | None = None,
        upstream_models: Sequence[str] = (),
        subscriptions: Sequence[str] = (),
        time: str | None = None,
        store: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.policy = policy_of(retrain, f"{type(self).__name__} {pipeline!r}")
        kwargs.setdefault("retry_policy", MlopsRetryPolicy())
        # The alias of a training's asset, which only an approval updates.
        self.alias = retrain_alias(pipeline)
        kwargs.setdefault("outlets", [self.alias])
        kwargs.setdefault("inlets", [retrain_asset(pipeline)])
        super().__init__(
            subject=f"Retrain {pipeline}?",
            defaults=self.REJECT,
            response_timeout=self.policy.approval.timeout,
            assigned_users=[{"id": user, "name": user} for user in self.policy.approval.users] or None,
            **kwargs,
        )
        self.pipeline, self.source, self.grain, self.windows = pipeline, source, grain, windows
        self.estimator, self.upstream_models, self.store = estimator, list(upstream_models), store
        self.subscriptions, self.time = list(subscriptions), time

    def execute(self, context: Context) -> Any:
        """Put the question, if there is one; a try that follows an answer asks no more."""
        store, run = Store(store_root(self.store)), run_key(context)
        requests = Requests(store, self.pipeline)

        def is_active(other: str) -> bool:
            return is_active_run(context, other)

        listener = listener_of(self.pipeline, self.source, self.time, self.grain)
        with received(requests, self.subscriptions, listener) as messages:
            wishes = [*promotions(context, self.pipeline, self.upstream_models), *messages]
            standing = requests.standing(*wishes)
            for wish in wishes:
                tell(requests.ask(wish, self.policy, standing))
        requests.review(self.policy, standing, is_active)
        mine = requests.put(run, is_active)
        approved = [each for each in mine if each.state == "started"]
        for each in approved:
            ring(context, self.pipeline, self.alias, each)
        if approved:
            return None
        asked = next((each for each in mine if each.state == "asking"), None)
        if asked is None:
            raise AirflowSkipException(
                "no retraining is suggested, or another run asks about it; "
                f"airflow-mlops requests {self.pipeline} tells"
            )
        from airflow_mlops.stages.question import Training, question

        training = Training(self.source, self.grain, self.windows, self.estimator)
        page = f"{(conf.get('api', 'base_url', fallback='') or '').rstrip('/')}/mlops/models/{self.pipeline}"
        self.body = question(store, asked, requests.all(), self.policy, training, page)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Write the answer down, and ring for a training where it is yes."""
        if "error" not in event:
            user = event.get("responded_by_user")
            who = (user["name"] or user["id"]) if user else None
            approved = event["chosen_options"] == [self.APPROVE]
            silence = f"nobody answered within {format_duration(self.policy.approval.timeout)}"
            why = f"{who} {'approved' if approved else 'said no'}" if who else silence
            requests = Requests(Store(store_root(self.store)), self.pipeline)
            answered = requests.answer(run_key(context), approved, who, why)
            if not answered:
                self.log.info("the suggestion was answered or withdrawn while the question waited: nothing is started")
            for each in answered:
                tell(each)
                if approved:
                    ring(context, self.pipeline, self.alias, each)
        return super().execute_complete(context, event)


class ApproveModelOperator(StageTask, ApprovalOperator):
    """Ask a person whether a version that passed its gate may become the champion; Airflow's own approval.

    The question shows what the version was measured by, how it compares with the champion, what led to its training,
    and leads to the model card and the report. A yes goes to the ledger with who said it. A no, or silence until the
    timeout, is a rejection there, with who and, where they wrote one, their reason: what follows is skipped, and the
    task and the run succeed, as with the gate's own rejection. An answer is asked for once, however often the task
    runs; a version that is the champion already is asked about by nobody.

    Its output ``decision`` goes into `PromoteModelOperator` in place of the gate's.

    :param version: the output of `RegisterModelOperator`. (templated)
    :param decision: the output of `ValidateModelOperator`. (templated)
    :param users: the ids of the Airflow users who may answer. Default: everybody who may answer in this DAG.
    :param timeout: how long the question waits: ``24h`` or a ``timedelta``.
    """

    stage = stages.Approve
    inputs = ("version", "decision")
    untemplated = frozenset({"users", "timeout", "approved", "by", "why"})
    links = ()
    timeout: Any
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        version: Any,
        decision: Any,
        users: Sequence[str] = (),
        timeout: timedelta | str = timedelta(days=3),
        pipeline: str | None = None,
        start: Any = None,
        window: Any = None,
        registry_conn_id: str = MlflowHook.default_conn_name,
        store: str | None = None,
        cache: bool = True,
        base: str | None = None,
        backend: str = "local",
        backend_options: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", MlopsRetryPolicy())
        users = [users] if isinstance(users, str) else list(users)
        for answer in ("approved", "by", "why"):
            kwargs.pop(answer, None)
        reason = Param("", type="string", description="Why; it goes on record with the answer.", source="task")
        super().__init__(
            subject="Promote?",
            defaults=self.REJECT,
            params=dict(kwargs.pop("params", None) or {}) | {"reason": reason},
            response_timeout=parse_duration(timeout),
            assigned_users=[{"id": user, "name": user} for user in users] or None,
            **kwargs,
        )
        settings = {
            "version": version,
            "decision": decision,
            "users": users,
            "timeout": timeout,
            "approved": None,
            "by": None,
            "why": "",
        }
        self.configure(
            settings,
            pipeline=pipeline,
            start=start,
            window=window,
            registry_conn_id=registry_conn_id,
            store=store,
            cache=cache,
            base=base,
            backend=backend,
            backend_options=backend_options,
            runtime=runtime,
            poll_interval=poll_interval,
        )

    def execute(self, context: Context) -> Any:
        """Put the question, unless there is nothing to ask."""
        return self.finish(context, self.carry(context, self.make_call(context)))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Write the answer down; a no skips what follows."""
        if "error" in event:
            self.process_trigger_event_error(event)
        self.validate_chosen_options(event["chosen_options"])
        user = event.get("responded_by_user")
        self.approved = event["chosen_options"] == [self.APPROVE]
        self.by = (user["name"] or user["id"]) if user else None
        reason = str((event.get("params_input") or {}).get("reason") or "").strip() if user else ""
        said = f"{self.by} {'approved' if self.approved else 'said no'}" + (f": {reason}" if reason else "")
        timeout = format_duration(parse_duration(self.timeout))
        self.why = said if user else f"nobody answered within {timeout}"
        return self.execute(context)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Ask where there is no answer yet; else report it, and skip what follows a no."""
        if outcome.verdict.status == "held":
            self.subject = f"Promote version {outcome.info['version']} of {self.pipeline_name}?"
            self.body = outcome.info["question"]
            ApprovalOperator.execute(self, context)
        return self.let_pass(context, outcome, super().finish(context, outcome))
