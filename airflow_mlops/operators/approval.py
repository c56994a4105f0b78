"""The question whether to retrain: asked of a person in Airflow, with the evidence, and answered on record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlops.call.store import Store
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.assets import retrain_alias, retrain_asset
from airflow_mlops.operators.base import is_active_run, run_key
from airflow_mlops.operators.retraining import policy_of, promotions, ring, tell
from airflow_mlops.operators.retry import MlopsRetryPolicy
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec.base import format_duration
from airflow_mlops.spec.window import Grain

if TYPE_CHECKING:
    from airflow.sdk import Context


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

    def execute(self, context: Context) -> Any:
        """Put the question, if there is one; a try that follows an answer asks no more."""
        store, run = Store(store_root(self.store)), run_key(context)
        requests = Requests(store, self.pipeline)

        def is_active(other: str) -> bool:
            return is_active_run(context, other)

        wishes = promotions(context, self.pipeline, self.upstream_models)
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
