"""Monitoring: a window's rows against the reference of the champion that serves today."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store, digest_of_file
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome, Verdict
from airflow_mlops.drift.decide_rows import Decision, decide
from airflow_mlops.errors import RegistryUnreachableError
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import NOTE_TAG, ModelRegistry
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.stages import Monitor
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.model_io import REFERENCE, download
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import read_table

log = logging.getLogger(__name__)

REPORT = "report.html"


def run(call: Call, params: Monitor, store: Store) -> Outcome:
    """Judge the window; outputs ``verdict`` and, where rows were compared, Evidently's ``report``."""
    registry = ModelRegistry.of(call, store)
    champion = registry.need_champion()
    window = extract(params.extract, call.window, store, call)
    with tempfile.TemporaryDirectory() as scratch, pointed_at(registry.ref.uri):
        folder = Path(scratch)
        reference = pq.read_table(download(champion.run_id, REFERENCE, folder))
        decision = decide(reference, read_table(window, store), params.data_drift)
        moved = [column.column for column in decision.columns if column.word == "moved"]
        verdict = {
            "status": decision.status,
            "reasons": list(decision.reasons),
            "moved": moved,
            "columns": [column._asdict() for column in decision.columns],
            "alpha": decision.alpha,
            "rows": window.rows,
            "data": window.digest,
            "champion": champion.version,
        }
        kept = store.put_json(verdict, "verdict")
        run_id = registry.run_of(
            call, tags={"mlops.kind": "monitor", "mlops.pipeline": call.pipeline, "mlops.champion": champion.version}
        )
        report = _log(run_id, decision, verdict, folder / "log", registry.ref.uri)
    registry.api.log(run_id, metrics=_metrics(decision, window.rows or 0), tags=_tags(call, decision))
    registry.api.end_run(run_id, "FINISHED")
    url = registry.run_url(run_id)
    report_url = registry.run_url(run_id, REPORT) if report else None
    Verdicts(store, call.pipeline).record(call, {**verdict, "mlflow_url": url, "report_url": report_url})
    return outcome_of(
        call,
        outputs={"verdict": kept, **({"report": report} if report else {})},
        metrics={"rows": float(window.rows or 0), "columns_moved": float(len(moved))},
        verdict=Verdict(status=decision.status, reasons=decision.reasons),
        info={
            "champion": champion.version,
            "run_id": run_id,
            "moved": ", ".join(moved),
            "mlflow_url": url,
            "report_url": report_url,
        },
    )


def _log(run_id: str, decision: Decision, verdict: dict[str, Any], folder: Path, uri: str) -> ArtifactRef | None:
    """Keep the verdict and the report with the run."""
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=1))
    report = None
    if decision.report is not None:
        file = folder / REPORT
        decision.report.save_html(str(file))
        report = ArtifactRef(uri=f"runs:/{run_id}/{REPORT}", digest=digest_of_file(file), kind="report")
    try:
        mlflow.MlflowClient().log_artifacts(run_id, str(folder))
    except (OSError, mlflow.exceptions.MlflowException) as error:
        raise RegistryUnreachableError(f"MLflow at {uri} takes no artifacts: {error}") from error
    return report


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
