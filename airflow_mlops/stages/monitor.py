"""Monitoring: a window's rows against the reference of the champion that serves today.

What is compared are profiles: the champion's was logged with it, and each file's is kept under the digest of its rows,
so a window is read once, however often and in however many comparisons it is looked at.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from airflow_mlops.call.store import Store, digest_of_file
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict, digest_of
from airflow_mlops.drift.decide import Decision, decide
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.errors import SchemaError
from airflow_mlops.registry.models import NOTE_TAG, ModelRegistry
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.stages import Monitor
from airflow_mlops.stages.extract import extract_parts
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.profiles import profile_of, reference_in

log = logging.getLogger(__name__)

REPORT = "report.html"


def run(call: Call, params: Monitor, store: Store) -> Outcome:
    """Judge the window; outputs ``verdict`` and, on an alarm, Evidently's ``report``."""
    registry = ModelRegistry.of(call, store)
    champion = registry.need_champion()
    parts = extract_parts(params.extract, call.window, store, call)
    current = DatasetProfile(0, {}, params.time)
    for part in parts:
        current = current.merge(profile_of(part, store, params.time))
    reference = reference_in(champion.run_id, registry.ref.uri, store)
    rule = params.data_drift
    rule = rule.model_copy(update={"columns": rule.columns or tuple(reference.columns)})
    decision = decide(reference, current, rule, window=_span(call))
    _require_form(decision)
    moved = [column.column for column in decision.columns if column.word == "moved"]
    verdict = {
        "status": decision.status,
        "reasons": list(decision.reasons),
        "moved": moved,
        "alarm": decision.alarm,
        "columns": [column._asdict() for column in decision.columns],
        "threshold": decision.threshold,
        "null": decision.null,
        "rows": current.rows,
        "data": parts[0].digest if len(parts) == 1 else digest_of([part.digest for part in parts]),
        "champion": champion.version,
    }
    written = store.put_json(verdict, "verdict")
    run_id = registry.run_of(
        call, tags={"mlops.kind": "monitor", "mlops.pipeline": call.pipeline, "mlops.champion": champion.version}
    )
    registry.api.log_text(run_id, "verdict.json", json.dumps(verdict, indent=1))
    report = _report(run_id, (reference, current), decision, registry) if decision.alarm else None
    registry.api.log(run_id, metrics=_metrics(decision, current.rows), tags=_tags(call, decision))
    registry.api.end_run(run_id, "FINISHED")
    url = registry.run_url(run_id)
    report_url = registry.run_url(run_id, REPORT) if report else None
    Verdicts(store, call.pipeline).record(call, {**verdict, "mlflow_url": url, "report_url": report_url})
    return outcome_of(
        call,
        outputs={"verdict": written, **({"report": report} if report else {})},
        metrics={"rows": float(current.rows), "columns_moved": float(len(moved))},
        verdict=Verdict(status=decision.status, reasons=decision.reasons),
        info={
            "champion": champion.version,
            "run_id": run_id,
            "moved": ", ".join(moved),
            "mlflow_url": url,
            "report_url": report_url,
        },
    )


def _span(call: Call) -> tuple[Any, Any] | None:
    return (call.window.start, call.window.end) if call.window else None


def _require_form(decision: Decision) -> None:
    """Refuse a window whose columns are not what they were: no retraining mends that, and a person must look."""
    broken = [column.note for column in decision.columns if column.word == "broken"]
    if broken:
        raise SchemaError(
            f"the window has not the form of the reference: {'; '.join(broken)}",
            fix="mend the data at its source, or train a model on data of this form",
        )


def _report(
    run_id: str, sides: tuple[DatasetProfile, DatasetProfile], decision: Decision, registry: ModelRegistry
) -> ArtifactRef:
    """Evidently's report, logged with the run."""
    # Evidently takes seconds to import, which a window without an alarm does not pay.
    from airflow_mlops.drift.report import write_html

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, REPORT)
        write_html(*sides, decision, file)
        registry.api.log_text(run_id, REPORT, file.read_text(encoding="utf-8"))
        return ArtifactRef(uri=f"runs:/{run_id}/{REPORT}", digest=digest_of_file(file), kind="report")


def _metrics(decision: Decision, rows: int) -> dict[str, float]:
    effects = {f"effect.{column.column}": column.effect for column in decision.columns if column.effect is not None}
    moved = sum(column.word == "moved" for column in decision.columns)
    return {"rows": float(rows), "columns_moved": float(moved), **effects}


def _tags(call: Call, decision: Decision) -> dict[str, str]:
    sentence = "; ".join(decision.reasons)
    window = call.window.key if call.window else "all"
    return {
        "mlops.verdict": decision.status,
        "mlops.window": window,
        NOTE_TAG: f"**{decision.status}** in {window}: {sentence}.",
    }
