"""A trial: the candidate gets a share of the traffic, or is only compared, until it has stood long enough.

It begins and ends by the ledger, before any promotion: whoever serves follows. One that does not hold is withdrawn, and
the run fails with the reason; the champion has served on all the while.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.deployments import Deployment, deployment_of
from airflow_mlops.errors import DeploymentError, GateError, TrialFailedError
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.models import CARD_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.registry.trial import Standing, standing
from airflow_mlops.spec.stages import Trial
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of
from airflow_mlops.stages.rejection import earlier

SINCE = "since"
"""The key of the Outcome's info that says when the trial began."""
_LOOK = 1.0
_SLACK = timedelta(hours=1)
"""What a promotion may take after a trial, before the trial ends by itself."""


def run(call: Call, params: Trial, store: Store) -> Outcome:
    """Begin the trial, or say how it stands; output ``decision``: the gate's, for what follows.

    While it goes on the verdict is ``held``, unless the params say to wait here.

    Raises:
        GateError: when the gate has not passed the version.
        DeploymentError: when nothing serves the model.
        TrialFailedError: when the candidate has broken a rule; it is withdrawn.
        PromotionConflictError: when the champion has moved since the gate.
    """
    ref, gate = call.input("version"), call.input("decision")
    decision, version = store.fetch_json(gate), version_of(ref)
    if decision["status"] not in ("ok", "warn"):
        raise GateError(f"version {version} was not passed by its gate: {'; '.join(decision['reasons'])}")
    registry = ModelRegistry.of(call, store)
    info: dict[str, str | None] = {"version": version}
    champion = registry.ledger.champion()
    if version == decision["champion"] == champion:
        reason = f"version {version} is the champion already"
        return outcome_of(call, outputs={"decision": gate}, verdict=Verdict(reasons=(reason,)), info=info)
    if champion is None:
        reason = "there is no champion to stand beside: the first version is promoted without a trial"
        return outcome_of(call, outputs={"decision": gate}, verdict=Verdict(reasons=(reason,)), info=info)
    withdrawn = earlier(registry, ("withdrawal",), call, version, gate.digest)
    if withdrawn is not None:
        raise _failed(version, withdrawn.reasons)
    target = deployment_of(params.target, {"google": params.google})
    begun = earlier(registry, ("trial",), call, version, gate.digest)
    if begun is None:
        # A target that somebody has to make do may have to be made do first.
        target.follow(registry.ref, store)
    if begun is None and not target.live(registry.ref, store):
        raise DeploymentError(
            f"nothing serves {registry.ref.model!r}, so no candidate can stand a trial",
            fix=f"airflow-mlops serve {registry.ref.model}, or deploy: {{strategy: replace}}",
        )
    entry = _begin(call, params, store, registry, decision["champion"])
    target.follow(registry.ref, store)
    found = _look(params, target, registry, store, entry)
    while params.wait and found.state == "baking":
        time.sleep(_LOOK)
        found = _look(params, target, registry, store, entry)
    info[SINCE] = entry.at.isoformat()
    if found.state == "held" and params.metric_drop is not None and params.performance is not None:
        # Only what was asked for by labels loads what reads them.
        from airflow_mlops.stages.trial_metric import compare

        compared = compare(call, store, registry, entry, params.performance, params.metric_drop)
        found = Standing("broken" if compared.worse else "held", (compared.reason, *found.reasons))
    if found.state == "broken":
        _withdraw(call, store, registry, entry, found.reasons)
        target.follow(registry.ref, store)
        raise _failed(version, found.reasons)
    verdict = Verdict(status="ok" if found.state == "held" else "held", reasons=found.reasons)
    return outcome_of(call, outputs={"decision": gate}, verdict=verdict, info=info)


def _look(params: Trial, target: Deployment, registry: ModelRegistry, store: Store, entry: Entry) -> Standing:
    servers = target.live(registry.ref, store)
    return standing(params, servers, entry.version, entry.at, datetime.now(UTC))


def _begin(call: Call, params: Trial, store: Store, registry: ModelRegistry, champion: str | None) -> Entry:
    ref, gate = call.input("version"), call.input("decision")
    version = version_of(ref)
    how = f"{params.share}% of the requests" if params.share else "in the champion's shadow"
    return registry.ledger.record(
        "trial",
        version=version,
        champion_before=champion,
        model=ref.digest,
        decision=gate.digest,
        reasons=(f"on trial: {how}",),
        requests=tuple(Requests(store, registry.ref.model).claimed_by(call.run)),
        run=call.run,
        share=params.share,
        target=params.target,
        until=datetime.now(UTC) + params.timeout + _SLACK,
        window=call.window.key if call.window else None,
        card=registry.api.version(registry.ref.model, version).tags.get(CARD_TAG),
    )


def _withdraw(call: Call, store: Store, registry: ModelRegistry, trial: Entry, reasons: tuple[str, ...]) -> None:
    registry.ledger.record(
        "withdrawal",
        version=trial.version,
        champion_before=trial.champion_after,
        model=trial.model,
        decision=trial.decision,
        reasons=reasons,
        requests=trial.requests,
        run=call.run,
        target=trial.target,
        window=trial.window,
        card=trial.card,
    )
    sentence = "; ".join(reasons)
    Requests(store, registry.ref.model).settle(call.run, f"withdrawn: {sentence}")
    registry.api.tag_version(registry.ref.model, trial.version, {"mlops.verdict": "withdrawn"})
    if registry.api.aliases(registry.ref.model).get("challenger") == trial.version:
        registry.api.set_alias(registry.ref.model, "challenger", None)


def _failed(version: str, reasons: tuple[str, ...]) -> TrialFailedError:
    return TrialFailedError(
        f"version {version} did not stand its trial and was withdrawn: {'; '.join(reasons)}",
        fix="the champion serves on; train anew when the cause is found",
    )
