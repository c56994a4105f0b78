"""Deployment: what serves is seen to follow the ledger, and to answer as training did; else the champion goes back."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.deployments import Answer, Deployment, Endpoint, await_followed, behind, deployment_of
from airflow_mlops.errors import CloudError, DeploymentError, MlopsError, ModelNotFoundError
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.mirror import let_follow
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.serving import Serving
from airflow_mlops.spec.stages import Deploy
from airflow_mlops.stages.golden import GOLDEN, Golden, differences, read_golden
from airflow_mlops.stages.model_io import read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of

log = logging.getLogger(__name__)

_LOOK = 0.5


def run(call: Call, params: Deploy, store: Store) -> Outcome:
    """Wait until everything that serves answers with the champion, ask it golden rows, and write the ledger.

    Where nothing serves there is nothing to follow: the verdict is ``warn``.

    Raises:
        DeploymentError: when what serves does not follow, or answers otherwise; a champion that this run has promoted
            has given way to the one before.
    """
    ref = call.input("champion")
    version = version_of(ref)
    registry = ModelRegistry.of(call, store)
    target = deployment_of(params.target, {"google": params.google})
    problems: list[str] = []
    try:
        target.follow(registry.ref, store)
    except (CloudError, DeploymentError) as error:
        if error.retryable:
            raise
        problems.append(str(error))
    info: dict[str, str | None] = {"version": version}
    undone = _undone(call, registry, version)
    if undone is not None:
        # What this run has seen fail does not succeed by being asked once more.
        registry.project()
        raise _failed(undone)
    if registry.ledger.champion() != version:
        reason = f"version {version} is the champion no more: nothing is deployed"
        return outcome_of(call, verdict=Verdict(status="warn", reasons=(reason,)), info=info)
    if problems:
        raise _taken_back(call, params, registry, target, store, version, problems)
    servers = await_followed(target, registry.ref, store, version, params.timeout.total_seconds())
    if not servers:
        reason = f"nothing serves {registry.ref.model!r} now; airflow-mlops serve {registry.ref.model} starts a server"
        return outcome_of(call, verdict=Verdict(status="warn", reasons=(reason,)), info=info)
    problems += [f"{each.url}: {behind(each, version)}" for each in servers if behind(each, version)]
    followed = [each for each in servers if not behind(each, version)]
    problems += _asked(params, registry, target, store, version, followed)
    if problems:
        raise _taken_back(call, params, registry, target, store, version, problems)
    urls = ", ".join(each.url for each in servers)
    reason = f"version {version} is served by {len(servers)} of {len(servers)}: {urls}"
    registry.ledger.record(
        "deployment",
        version=version,
        champion_before=version,
        model=ref.digest,
        reasons=(reason,),
        run=call.run,
        target=params.target,
        window=call.window.key if call.window else None,
    )
    # Seen to serve: what was kept to fall back on may go.
    target.follow(registry.ref, store)
    return outcome_of(call, verdict=Verdict(reasons=(reason,)), metrics={"servers": float(len(servers))}, info=info)


def _asked(
    params: Deploy, registry: ModelRegistry, target: Deployment, store: Store, version: str, servers: Sequence[Serving]
) -> list[str]:
    """What servers answer to golden rows otherwise than training saw, in words."""
    run_id = registry.api.version(registry.ref.model, version).run_id
    with tempfile.TemporaryDirectory() as folder:
        try:
            golden = read_golden(registry.api.fetch(run_id, GOLDEN, Path(folder)))
        except ModelNotFoundError:
            log.warning("version %s has no golden rows: what it answers is not looked at", version)
            return []
    regression = read_facts(registry.api, run_id).task == "regression"
    problems = []
    for server in servers:
        try:
            with target.connect(registry.ref, store, server) as endpoint:
                answer = _answer(endpoint, golden, version, params.timeout.total_seconds())
        except MlopsError as error:
            problems.append(error.what)
            continue
        found = differences(golden, answer, params.tolerance, regression=regression)
        if answer.version not in ("", version):
            found.append(f"version {answer.version} answered")
        problems += [f"{server.url}: {each}" for each in found]
    return problems


def _answer(endpoint: Endpoint, golden: Golden, version: str, seconds: float) -> Answer:
    """What an endpoint says of golden rows; where traffic is on its way to the version still, as soon as it says it."""
    until = time.monotonic() + seconds
    while True:
        answer = endpoint.ask(golden.columns, golden.rows, probe=True)
        if answer.version in ("", version) or time.monotonic() > until:
            return answer
        time.sleep(_LOOK)


def _taken_back(
    call: Call,
    params: Deploy,
    registry: ModelRegistry,
    target: Deployment,
    store: Store,
    version: str,
    problems: list[str],
) -> DeploymentError:
    """Put the champion before back, if this run has made the new one; the error tells."""
    why = f"version {version} is not served as it should be: {'; '.join(problems)}"
    promotion = registry.ledger.promotion()
    if promotion is None or promotion.run != call.run or registry.ledger.previous() is None:
        return DeploymentError(
            why, fix=f"airflow-mlops rollback {registry.ref.model} --reason TEXT, or mend the servers"
        )
    entry = registry.roll_back(reason=why, run=call.run)
    let_follow(registry, store, params.google)
    late = ""
    try:
        target.follow(registry.ref, store)
    except (CloudError, DeploymentError) as error:
        late = f"; and what serves does not follow back yet: {error.what}"
    return _failed(entry, late)


def _undone(call: Call, registry: ModelRegistry, version: str) -> Entry | None:
    """The rollback by which this run has taken the version's promotion back already."""
    for entry in registry.ledger.entries():
        if (entry.kind, entry.run, entry.champion_before) == ("rollback", call.run, version):
            return entry
    return None


def _failed(entry: Entry, late: str = "") -> DeploymentError:
    return DeploymentError(
        f"{'; '.join(entry.reasons)}{late}; version {entry.version} was put back",
        fix="train anew when the cause is found",
    )
