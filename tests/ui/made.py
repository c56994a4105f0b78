"""A model's history, written as a pipeline's runs write it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from airflow_mlops.call import Call, Store
from airflow_mlops.call.dispatch import run as dispatch
from airflow_mlops.errors import SchemaError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.stages.tables import write_table
from tests.toy import month, rows

MLFLOW = "http://mlflow.example:5000"
REPORT = f"{MLFLOW}/#/experiments/1/runs/abc/artifacts/report.html"


def judged(store: Store, model: str, window: str, status: str = "ok", place: str = "verdicts", **more: Any) -> None:
    """A monitoring run's verdict; `drift` means that the column `x1` moved."""
    reasons = {
        "ok": ["none of 2 columns moved"],
        "drift": ["x1 moved by 2.00 standard deviations", "1 columns unchanged"],
        "insufficient_data": ["3 rows against 900 of the reference; at least 100 each are needed"],
    }
    moved = [{"column": "x1", "word": "moved", "note": reasons["drift"][0]}] if status == "drift" else []
    verdict = {
        "status": status,
        "reasons": reasons.get(status, [status]),
        "columns": [*moved, {"column": "x2", "word": "steady", "note": "x2: 0.01, below 0.1"}],
        "rows": 1234,
        "champion": "1",
        "mlflow_url": f"{MLFLOW}/#/experiments/1/runs/abc",
        "report_url": REPORT,
        **more,
    }
    run = f"{model}.monitor/scheduled__{window}"
    call = Call(pipeline=model, stage="monitor", run=run, window=month(window), store=store.root)
    # As a file that anybody may have written, with whatever in it.
    body = {**verdict, "run": run, "window": window, "at": datetime.now(UTC).isoformat()}
    store.create_json(body, place, model, window, f"{call.identity}.json")


def asked(
    store: Store, model: str, window: str, reason: str = "drift: x1 moved by 2.00 standard deviations"
) -> Request:
    """A retrain request that waits."""
    request = Request(model=model, champion="1", reason=reason, trigger="drift", window=month(window))
    Requests(store, model).open(request)
    return request


def decided(store: Store, model: str, kind: Any, version: str, *reasons: str, **more: Any) -> None:
    """A line of the ledger, written by the run `RUN` of `MODEL.train`."""
    ledger = Ledger(store, model)
    given = {"run": f"{model}.train/manual__{version}", "champion_before": ledger.champion(), **more}
    ledger.record(kind, version=version, decision=f"sha256:{version}", reasons=reasons, **given)


RULES = {
    "columns": {
        "id": {"type": "string", "max_null_fraction": 0},
        "at": {"type": "timestamp"},
        "amount": {"type": "number", "min": -2},
        "age": {"type": "number", "min": 21, "max_null_fraction": 0.5, "on_violation": "warn"},
        "region": {"type": "string", "categories": ["east", "north", "<b>west</b>"]},
        "y": {"type": "integer", "categories": [0, 1], "on_violation": "stop"},
    },
    "unique": ["id"],
    "checks": [{"left": "age", "op": "!=", "right": "amount"}],
    "freshness": {"column": "at", "within": "5d"},
    "quarantine": {"max_share": 0.5},
}


def validated(store: Store, run: str, rules: dict[str, Any] = RULES) -> str:
    """The identity of a validation in a run, which leaves its page in the store."""
    data = write_table(rows("2024-01"), store)
    call = Call(
        pipeline="toy",
        stage="validate_data",
        run=run,
        window=month("2024-01"),
        inputs={"data": data},
        params={"schema": rules, "target": "y", "time": "at"},
        store=store.root,
    )
    with suppress(SchemaError):
        dispatch(call)
    return call.identity


def history(store: Store, model: str, run: str | None = None, **verdict: Any) -> Request:
    """A first champion, a quiet window, a drifted one, the request, and its promotion; return the request."""
    more = {"run": run} if run else {}
    decided(store, model, "promotion", "1", "there is no champion yet", window="2024-01", **more)
    judged(store, model, "2024-02", **verdict)
    judged(store, model, "2024-03", "drift", **verdict)
    request = asked(store, model, "2024-03")
    taken = run or f"{model}.train/manual__2"
    Requests(store, model).claim(taken, lambda run: True)
    reason = "roc_auc 0.7440 against 0.6770 of champion 1"
    decided(store, model, "promotion", "2", reason, window="2024-03", requests=(request.id,), **more)
    Requests(store, model).settle(taken, "version 2 was promoted")
    return request
