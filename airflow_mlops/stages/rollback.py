"""Rollback: an earlier champion comes back, and with it the preparation and drift reference that were logged with it.

The model holds its preparation, monitoring reads the reference of whatever version the ledger names, and servers follow
the ledger: one entry puts all of it back.
"""

from __future__ import annotations

from typing import NamedTuple

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.deployments import await_followed, behind, deployment_of
from airflow_mlops.errors import CloudError, DeploymentError
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.mirror import let_follow
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.stages import Rollback
from airflow_mlops.stages.outcome import outcome_of

ROLLED_BACK_TAG = "mlops.rolled_back"
"""The tag of a version that says why the title was taken from it."""

_SECONDS = 60.0
"""How long what serves may take to follow; it goes on trying after that."""


class _Served(NamedTuple):
    told: tuple[str, ...]
    late: bool


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
    unmirrored = let_follow(registry, store, params.google)
    served = _served(call, params, registry, store, entry)
    told = (*([unmirrored] if unmirrored else ()), *(served.told if served else ()))
    return outcome_of(
        call,
        outputs={
            "champion": ArtifactRef(uri=f"models:/{model}/{version}", digest=entry.model or "", kind="model_version")
        },
        verdict=Verdict(status="warn" if unmirrored or (served and served.late) else "ok", reasons=(reason, *told)),
        info={
            "version": version,
            "champion_before": entry.champion_before,
            "card_url": entry.card,
            "run_id": run_id,
            "mlflow_url": registry.run_url(run_id),
        },
    )


def _served(call: Call, params: Rollback, registry: ModelRegistry, store: Store, entry: Entry) -> _Served | None:
    """Wait for what serves to follow, and write that down; None where nothing serves, or the champion has moved on."""
    if registry.ledger.champion() != entry.version:
        return None
    known = (each.target for each in reversed(registry.ledger.entries()) if each.target)
    name = next(known, "local")
    target = deployment_of(name, {"google": params.google})
    try:
        target.follow(registry.ref, store)
    except (CloudError, DeploymentError) as error:
        # The ledger has decided; whoever looks next goes on from here.
        return _Served((f"what serves on {name!r} does not follow yet: {error}",), True)
    servers = await_followed(target, registry.ref, store, entry.version, _SECONDS)
    if not servers:
        return None
    late = [f"{each.url} does not follow yet: {why}" for each in servers if (why := behind(each, entry.version))]
    told = f"version {entry.version} is served by {len(servers) - len(late)} of {len(servers)}"
    if not late:
        registry.ledger.record(
            "deployment",
            version=entry.version,
            champion_before=entry.version,
            model=entry.model,
            reasons=(told,),
            run=call.run,
            target=name,
            window=entry.window,
        )
        target.follow(registry.ref, store)
    return _Served((told, *late), bool(late))
