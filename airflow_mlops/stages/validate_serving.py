"""Infrastructure validation: the candidate answers from the server that will serve it, as it did in training.

A candidate that does not come up there, answers otherwise, or is too slow or too large is turned away like one that
fails the gate; nothing that serves is touched.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.deployments import deployment_of
from airflow_mlops.errors import DeploymentError, GateError, ModelNotFoundError
from airflow_mlops.registry.mlflow_api import MlflowApi
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.base import format_size, parse_size
from airflow_mlops.spec.stages import ValidateServing
from airflow_mlops.stages.golden import GOLDEN, Golden, differences, latency, read_golden
from airflow_mlops.stages.model_io import read_facts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of
from airflow_mlops.stages.rejection import earlier, reject

log = logging.getLogger(__name__)

_WARM_UP = 5
_ASKED = 100


def run(call: Call, params: ValidateServing, store: Store) -> Outcome:
    """Start a server of the version, ask it the golden rows, and end it; output ``decision``: the gate's.

    Raises:
        GateError: when the gate has not passed the version, or it has no golden rows.
    """
    ref, gate = call.input("version"), call.input("decision")
    decision, version = store.fetch_json(gate), version_of(ref)
    if decision["status"] not in ("ok", "warn"):
        raise GateError(f"version {version} was not passed by its gate: {'; '.join(decision['reasons'])}")
    registry = ModelRegistry.of(call, store)
    info: dict[str, str | None] = {"version": version}
    metrics: dict[str, float] = {}
    refused = earlier(registry, ("rejection",), call, version, gate.digest)
    if version == decision["champion"] == registry.ledger.champion():
        verdict = Verdict(reasons=(f"version {version} is the champion already",))
    elif refused is not None:
        verdict = Verdict(status="rejected", reasons=refused.reasons)
    else:
        registered = registry.api.version(registry.ref.model, version)
        with tempfile.TemporaryDirectory() as folder:
            golden, regression = _golden(registry.api, registered.run_id, version, Path(folder))
        problems, metrics = _try(params, registry, store, version, ref.digest, golden, regression)
        registry.api.log(registered.run_id, metrics={f"serving.{name}": value for name, value in metrics.items()})
        if problems:
            reject(call, store, registry, ref, decision=gate.digest, champion=decision["champion"], reasons=problems)
            verdict = Verdict(status="rejected", reasons=problems)
        else:
            # Times are another each time, and what comes out of a stage is told by its content.
            info |= {name: f"{value:.1f}" for name, value in metrics.items()}
            log.info("half of the answers within %s ms, 99%% within %s ms", info["p50_ms"], info["p99_ms"])
            verdict = Verdict(reasons=(f"served, {len(golden.rows)} golden rows are answered as in training",))
    return outcome_of(call, outputs={"decision": gate}, verdict=verdict, info=info)


def _golden(api: MlflowApi, run_id: str, version: str, folder: Path) -> tuple[Golden, bool]:
    try:
        file = api.fetch(run_id, GOLDEN, folder)
    except ModelNotFoundError as error:
        raise GateError(
            f"version {version} has no golden rows: an earlier version of this package has trained it",
            fix="train it once more, with cache: false",
        ) from error
    return read_golden(file), read_facts(api, run_id).task == "regression"


def _try(
    params: ValidateServing,
    registry: ModelRegistry,
    store: Store,
    version: str,
    digest: str,
    golden: Golden,
    regression: bool,
) -> tuple[tuple[str, ...], dict[str, float]]:
    """What is wrong with the version where it is served, in words, and what was measured."""
    target = deployment_of(params.target, {"google": params.google})
    seconds = params.timeout.total_seconds()
    place = target.open(registry.ref, store, version, digest, seconds=seconds, allow_pickle=params.allow_pickle)
    try:
        with place as endpoint:
            answer = endpoint.ask(golden.columns, golden.rows)
            problems = differences(golden, answer, params.tolerance, regression=regression)
            if answer.version not in ("", version):
                problems.append(f"version {answer.version} answered in its place")
            times = []
            for number in range(_WARM_UP + _ASKED):
                row = golden.rows[number % len(golden.rows)]
                times.append(endpoint.ask(golden.columns, [row]).seconds)
            metrics = dict(latency(times[_WARM_UP:]))
            if endpoint.size is not None:
                metrics["bytes"] = float(endpoint.size)
    except DeploymentError as error:
        # What it said is for whoever reads the task's log; the ledger gets the gist.
        log.warning("version %s cannot be served: %s", version, error)
        return (f"it cannot be served: {error.what}",), {}
    if params.max_latency_ms is not None and metrics["p99_ms"] > params.max_latency_ms:
        problems.append(
            f"one answer in a hundred takes {metrics['p99_ms']:.1f} ms or more, "
            f"and {params.max_latency_ms:g} is the most"
        )
    size = metrics.get("bytes")
    if params.max_size is not None and size is not None and size > parse_size(params.max_size):
        problems.append(f"it is {format_size(int(size))} large, and {params.max_size} is the most")
    return tuple(problems), metrics
