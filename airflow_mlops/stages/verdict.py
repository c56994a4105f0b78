"""What every monitoring stage ends with: its verdict as an artifact, in an MLflow run and, last, where it counts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_mlops.call.store import Store, digest_of_file
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.drift.decide import Decision
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.registry.models import NOTE_TAG, ModelRegistry
from airflow_mlops.registry.verdicts import NO_WINDOW, SENSORS, Verdicts
from airflow_mlops.stages.outcome import outcome_of

REPORT = "report.html"


def said_of(decision: Decision, rows: int, champion: str) -> dict[str, Any]:
    """A decision on drift as it is kept.

    Args:
        decision: what was decided.
        rows: how many rows were judged.
        champion: the version whose reference they were held against.
    """
    return {
        "status": decision.status,
        "reasons": list(decision.reasons),
        "moved": [column.column for column in decision.columns if column.word == "moved"],
        "alarm": decision.alarm,
        "columns": [column._asdict() for column in decision.columns],
        "threshold": decision.threshold,
        "null": decision.null,
        "rows": rows,
        "champion": champion,
    }


def tell_drift(
    call: Call,
    store: Store,
    registry: ModelRegistry,
    said: Mapping[str, Any],
    decision: Decision,
    sides: tuple[DatasetProfile, DatasetProfile],
) -> Outcome:
    """Keep a decision on drift, on an alarm with Evidently's report of both sides; see `tell`."""
    metrics = {"rows": float(said["rows"]), "columns_moved": float(len(said["moved"]))}
    effects = {f"effect.{column.column}": column.effect for column in decision.columns if column.effect is not None}
    return tell(call, store, registry, said, metrics, effects, (*sides, decision) if decision.alarm else None)


def tell(
    call: Call,
    store: Store,
    registry: ModelRegistry,
    said: Mapping[str, Any],
    metrics: Mapping[str, float],
    more: Mapping[str, float] | None = None,
    report: tuple[DatasetProfile, DatasetProfile, Decision] | None = None,
) -> Outcome:
    """Keep what is said of a window; a retry finds its run again, and its verdict changes nothing.

    Args:
        call: of the stage that says it.
        store: where artifacts and verdicts are.
        registry: where the MLflow run is.
        said: the verdict, with the fields of `MonitoringVerdict`.
        metrics: what the Outcome and MLflow show as numbers.
        more: further numbers for MLflow alone.
        report: what Evidently's report is made of. Default: there is none.

    Returns:
        The Outcome, with the outputs ``verdict`` and, where there is one, ``report``.
    """
    sensor = SENSORS[call.stage]
    written = {"verdict": store.put_json(said, "verdict")}
    # The run of a window's data bears the name of the run itself; others stand beside it.
    data = sensor == "data_drift"
    tags = {
        "mlops.kind": "monitor" if data else sensor,
        "mlops.pipeline": call.pipeline,
        "mlops.champion": said["champion"],
    }
    run_id = registry.run_of(call, suffix="" if data else f"/{sensor}", tags=tags)
    registry.api.log_text(run_id, "verdict.json", json.dumps(said, indent=1))
    if report:
        written["report"] = _report(run_id, registry, *report)
    registry.api.log(run_id, metrics={**metrics, **(more or {})}, tags=_tags(call, said))
    registry.api.end_run(run_id, "FINISHED")
    urls = {
        "mlflow_url": registry.run_url(run_id),
        "report_url": registry.run_url(run_id, REPORT) if report else None,
    }
    Verdicts(store, call.pipeline, sensor).record(call, {**said, **urls})
    moved = {"moved": ", ".join(said["moved"])} if "moved" in said else {}
    return outcome_of(
        call,
        outputs=written,
        metrics=dict(metrics),
        verdict=Verdict(status=said["status"], reasons=tuple(said["reasons"])),
        info={"champion": said["champion"], "run_id": run_id, **moved, **urls},
    )


def _report(
    run_id: str, registry: ModelRegistry, reference: DatasetProfile, current: DatasetProfile, decision: Decision
) -> ArtifactRef:
    # Evidently takes seconds to import, which a window without an alarm does not pay.
    from airflow_mlops.drift.report import write_html

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, REPORT)
        write_html(reference, current, decision, file)
        registry.api.log_text(run_id, REPORT, file.read_text(encoding="utf-8"))
        return ArtifactRef(uri=f"runs:/{run_id}/{REPORT}", digest=digest_of_file(file), kind="report")


def _tags(call: Call, said: Mapping[str, Any]) -> dict[str, str]:
    window = call.window.key if call.window else NO_WINDOW
    return {
        "mlops.verdict": said["status"],
        "mlops.window": window,
        NOTE_TAG: f"**{said['status']}** in {window}: {'; '.join(said['reasons'])}.",
    }
