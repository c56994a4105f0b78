"""Promotion: a version whose gate said yes becomes the champion.

Unless the champion is no longer the one it was judged against.
"""

from __future__ import annotations

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.errors import GateError
from airflow_mlops.registry.models import CARD_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec.stages import Promote
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of


def run(call: Call, params: Promote, store: Store) -> Outcome:
    """Write the ledger, then let the aliases follow; output ``champion``.

    Raises:
        GateError: when the decision is no yes, or is about another model.
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
    requests = Requests(store, registry.ref.model)
    card = registered.tags.get(CARD_TAG)
    info: dict[str, str | None] = {"version": version, "card_url": card}
    run_id = registered.run_id
    # The ledger is asked only where the gate saw this very version hold the title; else `record` reads it and decides.
    if version == decision["champion"] == registry.ledger.champion():
        reason, note = f"version {version} is the champion already; nothing has changed", "is the champion already"
        info["unchanged"] = "true"
    else:
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
    return outcome_of(
        call,
        outputs={"champion": ArtifactRef(uri=ref.uri, digest=ref.digest, kind="model_version")},
        verdict=Verdict(reasons=(reason,)),
        info={**info, "run_id": run_id, "mlflow_url": registry.run_url(run_id)},
    )
