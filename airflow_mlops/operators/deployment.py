"""From a promoted model to a served one, and back: the operators of a deployment.

What an argument means is said once, in `airflow_mlops.spec.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.assets import model_asset
from airflow_mlops.operators.base import GateOperator, StageOperator
from airflow_mlops.operators.links import CARD_URL, RUN_URL
from airflow_mlops.spec import stages
from airflow_mlops.triggers.trial import TrialTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.call.wire import Call, Outcome
    from airflow_mlops.spec.window import Window


class ValidateServingOperator(GateOperator):
    """Serve the candidate in a clean process, and hold what it answers to golden rows against what training saw.

    A version that does not come up there, answers otherwise, or is too slow or too large is a rejection in the ledger:
    what follows is skipped, and the task succeeds, as with the gate's own. Its output ``decision`` goes on in place of
    the gate's.

    :param version: the output of `RegisterModelOperator`. (templated)
    :param decision: the output of `ValidateModelOperator`. (templated)
    :param target: where it will be served: a name entered in the entry points ``airflow_mlops.deployments``.
    :param tolerance: how far a served number may lie from what training saw, in absolute value or, above 1, as a share.
    :param max_latency_ms: what one answer in a hundred, to one row, may take at most, in milliseconds. Default: any.
    :param max_size: how large the model's files may be, such as ``200MiB``. Default: any.
    :param allow_pickle: whether a model written with cloudpickle, which runs code when it is loaded, may be served.
    :param timeout: how long the server may take to come up.
    :param google: the section ``google`` of a declaration, for a target there: ``{"project": ..., "region": ...}``.
    """

    stage = stages.ValidateServing
    links = ()
    inputs = ("version", "decision")
    untemplated = frozenset({"timeout", "google"})
    timeout: Any

    def __init__(
        self,
        *,
        version: Any,
        decision: Any,
        target: str = "local",
        tolerance: float = 1e-6,
        max_latency_ms: float | None = None,
        max_size: str | None = None,
        allow_pickle: bool = False,
        timeout: timedelta | str = timedelta(minutes=2),
        google: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "google": dict(google) if google else None,
            "version": version,
            "decision": decision,
            "target": target,
            "tolerance": tolerance,
            "max_latency_ms": max_latency_ms,
            "max_size": max_size,
            "allow_pickle": allow_pickle,
            "timeout": timeout,
        }
        super().__init__(settings=settings, **kwargs)


class TrialModelOperator(StageOperator):
    """Give a candidate a share of the traffic, or compare it in the champion's shadow, until it has stood long enough.

    The ledger says that the trial begins, and whoever serves follows. While it bakes the task is deferred and holds no
    worker. A candidate that breaks a rule is withdrawn, in the ledger with the reason, and the task fails: the run is
    red, nothing is promoted, and the champion serves on. Its output ``decision`` goes into `PromoteModelOperator`.

    :param version: the output of `RegisterModelOperator`. (templated)
    :param decision: the output of `ValidateModelOperator`, or of what came after it. (templated)
    :param target: where it is served: a name entered in the entry points ``airflow_mlops.deployments``.
    :param share: how many of a hundred requests it answers; ``0``: its answers are only compared, and never returned.
    :param bake: how long it must hold.
    :param min_requests: how many requests, or compared rows, it must have seen by then; until it has, it goes on.
    :param timeout: how long it may take to see them.
    :param error_rate: the share of its requests that may fail.
    :param disagreement: the share of compared rows that it may answer otherwise than the champion. Default: any.
    :param max_p99_ms: what one answer in a hundred may take at most, in milliseconds. Default: any.
    :param metric_drop: how far its metric may lie behind the champion's, by the labels that have come when the trial
        ends. Default: labels are not asked for.
    :param performance: where these labels are, with the arguments of `ModelPerformanceSensor`: ``{"labels": ...,
        "key": [...], "target": ..., "min_labels": 200}``.
    :param wait: whether the task stays on its worker while the trial goes on.
    :param google: the section ``google`` of a declaration, for a target there: ``{"project": ..., "region": ...}``.
    """

    stage = stages.Trial
    links = ()
    inputs = ("version", "decision")
    untemplated = frozenset({"bake", "timeout", "performance", "google"})
    ui_color = "#fef3c7"
    timeout: Any
    target: str

    def __init__(
        self,
        *,
        version: Any,
        decision: Any,
        target: str = "local",
        share: int = 0,
        bake: timedelta | str = timedelta(minutes=10),
        min_requests: int = 100,
        timeout: timedelta | str = timedelta(days=1),
        error_rate: float | None = 0.02,
        disagreement: float | None = None,
        max_p99_ms: float | None = None,
        metric_drop: float | None = None,
        performance: Mapping[str, Any] | None = None,
        wait: bool = False,
        google: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {
            "version": version,
            "decision": decision,
            "target": target,
            "share": share,
            "bake": bake,
            "min_requests": min_requests,
            "timeout": timeout,
            "error_rate": error_rate,
            "disagreement": disagreement,
            "max_p99_ms": max_p99_ms,
            "metric_drop": metric_drop,
            "performance": dict(performance) if performance else None,
            "wait": wait,
            "google": dict(google) if google else None,
        }
        super().__init__(settings=settings, **kwargs)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Wait without a worker while the trial goes on; else report how it ended."""
        if outcome.verdict.status == "held":
            self.log.info("%s", "; ".join(outcome.verdict.reasons))
            call = self.make_call(context)
            assert call.registry is not None  # noqa: S101 - a trial needs one
            trigger = TrialTrigger(
                store=store_root(self.store),
                registry=call.registry.model_dump(mode="json"),
                params=self.stage_params().model_dump(mode="json"),
                version=str(outcome.info["version"]),
                since=str(outcome.info["since"]),
                poll_interval=min(self.poll_interval, 10.0),
            )
            self.defer(trigger=trigger, method_name="judge")
        return super().finish(context, outcome)

    def judge(self, context: Context, event: dict[str, Any]) -> Any:
        """Ask the stage once more, now that there is something to say."""
        return self.execute(context)


class DeployModelOperator(StageOperator):
    """See that what serves follows the champion and answers as training did; the ledger then has a deployment.

    A server that does not follow, or answers golden rows otherwise, fails the task, and a champion that this very run
    has promoted gives way to the one before. Where nothing serves the verdict is ``warn``.

    :param champion: the output of `PromoteModelOperator`. (templated)
    :param target: where it is served: a name entered in the entry points ``airflow_mlops.deployments``.
    :param tolerance: how far a served number may lie from what training saw, in absolute value or, above 1, as a share.
    :param timeout: how long what serves may take to follow.
    :param google: the section ``google`` of a declaration, for a target there: ``{"project": ..., "region": ...}``.
    """

    stage = stages.Deploy
    links = ()
    inputs = ("champion",)
    untemplated = frozenset({"timeout", "google"})
    ui_color = "#dcfce7"
    timeout: Any

    def __init__(
        self,
        *,
        champion: Any,
        target: str = "local",
        tolerance: float = 1e-6,
        timeout: timedelta | str = timedelta(minutes=2),
        google: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        google = dict(google) if google else None
        settings = {
            "champion": champion,
            "target": target,
            "tolerance": tolerance,
            "timeout": timeout,
            "google": google,
        }
        super().__init__(settings=settings, **kwargs)


class RollbackModelOperator(StageOperator):
    """Put an earlier champion back, and update the asset ``x-mlops://PIPELINE/model``.

    Its preparation and its drift reference come back with it, the ledger says who wanted it and why, and the retrain
    policy's cooldown starts. A retry takes no second step; two runs go back two steps. Without ``pipeline`` no asset is
    updated.

    :param reason: why; it goes on record. (templated)
    :param version: the version, which was the champion once. Default: the one before. (templated)
    :param by: who wants it. Default: the user who has triggered the run. (templated)
    :param google: the section ``google`` of a declaration, where the version is mirrored and served. Default: the one
        that a run has declared before.
    """

    stage = stages.Rollback
    links = (RUN_URL, CARD_URL)
    untemplated = frozenset({"google"})
    ui_color = "#fee2e2"
    by: str | None

    def __init__(
        self,
        *,
        reason: str,
        version: str | None = None,
        by: str | None = None,
        google: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        **kwargs: Any,
    ) -> None:
        if pipeline:
            kwargs.setdefault("outlets", [model_asset(pipeline)])
        google = dict(google) if google else None
        settings = {"reason": reason, "version": version, "by": by, "google": google}
        super().__init__(settings=settings, pipeline=pipeline, **kwargs)

    def make_call(self, context: Context, window: Window | None = None) -> Call:
        """The Call, with who has triggered the run."""
        self.by = self.by or getattr(context["dag_run"], "triggering_user_name", None)
        return super().make_call(context, window)

    def finish(self, context: Context, outcome: Outcome) -> dict[str, Any]:
        """Tell those that wait for a new champion which one it is."""
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {"version": outcome.info["version"]}
        return super().finish(context, outcome)
