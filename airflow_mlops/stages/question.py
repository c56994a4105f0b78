"""What a person is shown who is asked whether to retrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airflow_mlops.call.store import Store
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.policy import WEEK, Recorded, Request, starts
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.base import format_duration
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.window import Grain, last_windows
from airflow_mlops.stages.document import Bullets, Cell, Document, Facts, Link, Section, Text, as_markdown


class Training(NamedTuple):
    """What a training would use."""

    source: str | Mapping[str, Any] | None
    """Where it reads, as in extraction."""
    grain: Grain
    """The calendar piece that windows step by."""
    windows: int
    """How many windows it reads."""
    estimator: str | None
    """What it fits."""


def question(
    store: Store,
    asked: Recorded,
    records: Sequence[Recorded],
    policy: Retrain,
    training: Training,
    page: str,
) -> str:
    """The evidence as Markdown; what data and people have written is escaped.

    Args:
        store: where the ledger and the verdicts are.
        asked: the request.
        records: all of the model's requests.
        policy: the retrain policy.
        training: what a training would use.
        page: where the model's history is shown.
    """
    request, verdict = asked.request, _verdict(store, asked.request)
    moved = [str(each["note"]) for each in verdict.get("columns", ()) if each.get("word") == "moved"]
    held = [each.request.reason for each in records if each.state == "held"]
    sections = [
        *([Section("What moved", [Bullets(moved)])] if moved else []),
        Section("What is known", [Facts([*_facts(store, request, verdict), ("History", Link(page, page))])]),
        Section("What a training would use", [Bullets(_uses(request, training))]),
        Section("What the policy says", [Bullets(_says(policy, records))]),
        *([Section("What waits with it", [Text("A training answers these too."), Bullets(held)])] if held else []),
    ]
    return as_markdown(Document(f"Retrain {request.model}?", [Text(request.reason)], sections))


def _verdict(store: Store, request: Request) -> dict[str, Any]:
    """The newest verdict on the window that a request is about; empty where there is none."""
    found = Verdicts(store, request.model).of_window(request.window.key) if request.window else []
    return next((each for each in reversed(found) if each.get("trigger", "drift") == request.trigger), {})


def _facts(store: Store, request: Request, verdict: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    facts: list[tuple[str, Cell]] = []
    if request.window:
        rows = f", {verdict['rows']:,} rows" if verdict.get("rows") else ""
        facts.append(("Window", f"{request.window.key}{rows}"))
    promotion = Ledger(store, request.model).promotion()
    if promotion:
        minutes = (datetime.now(UTC) - promotion.at) // timedelta(minutes=1)
        since = f"since {promotion.at:%Y-%m-%d %H:%M} UTC, {format_duration(timedelta(minutes=minutes))} old"
        window = f", trained up to {promotion.window}" if promotion.window else ""
        facts.append(("Champion", f"version {promotion.version}, {since}{window}"))
    links = (("Report", verdict.get("report_url") or request.evidence), ("MLflow run", verdict.get("mlflow_url")))
    return [*facts, *((name, Link(str(href), str(href))) for name, href in links if href)]


def _uses(request: Request, training: Training) -> list[str]:
    if request.window:
        first, last = last_windows(training.grain, request.window, training.windows)[0].key, request.window.key
        read = f"Window {last}" if first == last else f"Windows {first} to {last}"
    else:
        read = "The newest window" if training.windows == 1 else f"The newest {training.windows} windows"
    source = training.source
    if isinstance(source, Mapping):
        source = f"the connection {source.get('connection')}"
    of = f" of {source}" if source else ""
    fitted = f", fitted with {training.estimator}" if training.estimator else ""
    return [f"{read}{of}{fitted}.", "Its gate compares it with the champion."]


def _says(policy: Retrain, records: Sequence[Recorded]) -> list[str]:
    week = sum(at + WEEK > datetime.now(UTC) for at in starts(records))
    budget = "" if policy.max_per_week is None else f" of {policy.max_per_week} that it may"
    return [
        f"A yes starts a training: {week} were started in the last 7 days{budget}.",
        f"A no, and no answer within {format_duration(policy.approval.timeout)}, starts the cooldown of "
        f"{format_duration(policy.cooldown)}, in which nothing is suggested.",
    ]
