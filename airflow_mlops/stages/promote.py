"""Promotion: a version whose gate says yes becomes the champion, unless it was judged against another one.

The gate's verdict is computed anew from the evidence that it names: a task that forgot the gate, or was laxer than what
is declared, cannot promote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.errors import GateError
from airflow_mlops.registry.mirror import let_follow
from airflow_mlops.registry.models import CARD_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec.stages import Promote, ValidateModel
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of
from airflow_mlops.stages.rejection import earlier
from airflow_mlops.stages.validate_model import judge, scored_rows


def run(call: Call, params: Promote, store: Store) -> Outcome:
    """Write the ledger, then let the aliases follow; output ``champion``.

    Raises:
        GateError: when the decision is no yes, is about another model, or is not what its evidence gives; or when a
            person has to approve and has not.
        PromotionConflictError: when the champion has moved since the gate.
    """
    ref, gate = call.input("version"), call.input("decision")
    decision = store.fetch_json(gate)
    version = version_of(ref)
    if decision["status"] not in ("ok", "warn"):
        raise GateError(f"version {version} was not passed by its gate: {'; '.join(decision['reasons'])}")
    registry = ModelRegistry.of(call, store)
    registered = registry.api.version(registry.ref.model, version)
    if not decision["model"] == ref.digest == registered.tags.get("mlops.model_digest"):
        raise GateError(
            f"the decision is about model {decision['model']}, and version {version} is another",
            fix="pass the decision of the gate that judged this very version",
        )
    judge_again(decision, params.gate, store, version)
    requests = Requests(store, registry.ref.model)
    card = registered.tags.get(CARD_TAG)
    info: dict[str, str | None] = {"version": version, "card_url": card}
    run_id = registered.run_id
    # The ledger is asked only where the gate saw this very version hold the title; else `record` reads it and decides.
    if version == decision["champion"] == registry.ledger.champion():
        reason, note = f"version {version} is the champion already; nothing has changed", "is the champion already"
        info["unchanged"] = "true"
    else:
        if params.needs_approval and earlier(registry, ("approval",), call, version, gate.digest) is None:
            raise GateError(
                f"nobody has approved of version {version} in this run",
                fix="let ApproveModelOperator come before, and pass its decision on",
            )
        entry = registry.ledger.record(
            "promotion",
            version=version,
            champion_before=decision["champion"],
            decision=gate.digest,
            model=ref.digest,
            reasons=tuple(decision["reasons"]),
            requests=tuple(requests.claimed_by(call.run)),
            run=call.run,
            window=call.window.key if call.window else None,
            card=card,
        )
        registry.project()
        info["champion_before"] = entry.champion_before
        run_id = registry.find_run(call) or run_id
        registry.api.log(run_id, tags={"mlops.promoted": f"{registry.ref.model} version {version}"})
        reason = f"version {version} is the champion"
        reason += f", after {entry.champion_before}" if entry.champion_before else ""
        note = "was promoted"
    requests.settle(call.run, f"version {version} {note}")
    behind = let_follow(registry, store, params.google)
    return outcome_of(
        call,
        outputs={"champion": ArtifactRef(uri=ref.uri, digest=ref.digest, kind="model_version")},
        verdict=Verdict(status="warn" if behind else "ok", reasons=(reason, *([behind] if behind else ()))),
        info={**info, "run_id": run_id, "mlflow_url": registry.run_url(run_id)},
    )


def judge_again(decision: Mapping[str, Any], declared: ValidateModel | None, store: Store, version: str) -> None:
    """Put a verdict's evidence through its gate once more.

    Args:
        decision: the verdict's own JSON.
        declared: the gate; None for the one that the verdict names.
        store: where the evidence is, each part under the digest that names it.
        version: the version that it is about.

    Raises:
        GateError: when there is no evidence, it is about another model or champion, or the gate says no.
        StoreError: when it is gone, or was changed.
    """
    if not decision.get("evaluation"):
        raise GateError(
            f"the decision about version {version} names no evaluation, so nobody can tell what it follows from",
            fix="pass the decision of ValidateModelOperator",
        )
    evaluation = store.fetch_json(store.ref("evaluation", decision["evaluation"], ".json"))
    already = version == decision["champion"]
    if evaluation["model"] != decision["model"] or (not already and evaluation["champion"] != decision["champion"]):
        raise GateError(
            f"the decision about version {version} and the evaluation that it names are about different models",
            fix="clear the gate, so that it judges anew",
        )
    gate = declared or ValidateModel.model_validate(decision["params"])
    verdict, _ = judge(evaluation, lambda: scored_rows(evaluation, store), gate, already=already)
    if not verdict.passed:
        raise GateError(
            f"version {version} was passed, and the gate, put to the same evidence once more, says no: "
            f"{'; '.join(verdict.reasons)}",
            fix="let ValidateModelOperator judge by the limits that are declared",
        )
