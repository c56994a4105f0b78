"""What a no after the gate does: the same as the gate's own, said once."""

from __future__ import annotations

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.models import CARD_TAG, NOTE_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.stages.register import version_of


def reject(
    call: Call,
    store: Store,
    registry: ModelRegistry,
    version: ArtifactRef,
    *,
    decision: str,
    champion: str | None,
    reasons: tuple[str, ...],
    by: str | None = None,
) -> Entry:
    """Write a rejection to the ledger, and let requests, the run's note and the version's tags follow; once.

    Args:
        call: whose run it is.
        store: where requests are.
        registry: the registry and its ledger.
        version: the version that was rejected.
        decision: the digest of the verdict that it follows.
        champion: the champion that stays.
        reasons: why, in plain words.
        by: the person who said no; None where none did.
    """
    number, requests = version_of(version), Requests(store, registry.ref.model)
    registered = registry.api.version(registry.ref.model, number)
    entry = registry.ledger.record(
        "rejection",
        version=number,
        champion_before=champion,
        model=version.digest,
        decision=decision,
        reasons=reasons,
        requests=tuple(requests.claimed_by(call.run)),
        run=call.run,
        by=by,
        window=call.window.key if call.window else None,
        card=registered.tags.get(CARD_TAG),
    )
    # What a person has said stands as they wrote it, and so does their name.
    sentence = "; ".join(entry.reasons)
    requests.settle(call.run, f"rejected: {sentence}")
    tags = {"mlops.verdict": "rejected"}
    run_id = registry.find_run(call) or registered.run_id
    registry.api.log(run_id, tags={**tags, NOTE_TAG: f"**rejected**: {sentence}"})
    registry.api.tag_version(registry.ref.model, number, tags)
    if registry.api.aliases(registry.ref.model).get("challenger") == number:
        registry.api.set_alias(registry.ref.model, "challenger", None)
    return entry


def earlier(registry: ModelRegistry, kinds: tuple[str, ...], call: Call, version: str, decision: str) -> Entry | None:
    """What the run has written about a version already, after this very verdict; None where it has not."""
    for entry in reversed(registry.ledger.entries()):
        if (entry.version, entry.decision, entry.run) == (version, decision, call.run) and entry.kind in kinds:
            return entry
    return None
