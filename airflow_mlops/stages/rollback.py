"""Rollback: an earlier champion comes back, and with it the preparation and drift reference that were logged with it.

The model holds its preparation, and monitoring reads the reference of whatever version the ledger names: one entry puts
all of it back.
"""

from __future__ import annotations

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.stages import Rollback
from airflow_mlops.stages.outcome import outcome_of

ROLLED_BACK_TAG = "mlops.rolled_back"
"""The tag of a version that says why the title was taken from it."""


def run(call: Call, params: Rollback, store: Store) -> Outcome:
    """Write the ledger, then let the aliases follow; output ``champion``.

    Raises:
        ModelNotFoundError: when there is no such version to go back to, or it is gone from the registry.
        RegistryError: when the version is the champion already, or is no longer the model that was promoted.
        PromotionConflictError: when the champion has moved meanwhile.
    """
    registry = ModelRegistry.of(call, store)
    entry = registry.roll_back(params.version, reason=params.reason, run=call.run, by=params.by)
    model, version = registry.ref.model, entry.version
    if entry.champion_before:
        registry.api.tag_version(model, entry.champion_before, {ROLLED_BACK_TAG: "; ".join(entry.reasons)})
    run_id = registry.api.version(model, version).run_id
    reason = f"version {version} is the champion again, after {entry.champion_before}: {'; '.join(entry.reasons)}"
    return outcome_of(
        call,
        outputs={
            "champion": ArtifactRef(uri=f"models:/{model}/{version}", digest=entry.model or "", kind="model_version")
        },
        verdict=Verdict(reasons=(reason,)),
        info={
            "version": version,
            "champion_before": entry.champion_before,
            "card_url": entry.card,
            "run_id": run_id,
            "mlflow_url": registry.run_url(run_id),
        },
    )
