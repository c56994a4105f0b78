"""The person between the gate and the promotion: what they are shown, and what their answer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.errors import GateError
from airflow_mlops.registry.models import CARD_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.base import format_duration
from airflow_mlops.spec.stages import Approve
from airflow_mlops.stages.document import Bullets, Cell, Document, Facts, Link, Section, Table, Text, as_markdown
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.register import version_of
from airflow_mlops.stages.rejection import earlier, reject

QUESTION = "question"
"""The key of the Outcome's info that holds the question, as Markdown."""


def run(call: Call, params: Approve, store: Store) -> Outcome:
    """Write the answer down, or give the question; output ``decision``: the gate's, for what follows a yes.

    Without an answer the verdict is ``held``, unless there is nothing to ask: the version is the champion already, or
    this run has asked about it before.

    Raises:
        GateError: when the gate has not passed the version.
    """
    ref, gate = call.input("version"), call.input("decision")
    decision, version = store.fetch_json(gate), version_of(ref)
    if decision["status"] not in ("ok", "warn"):
        raise GateError(f"version {version} was not passed by its gate: {'; '.join(decision['reasons'])}")
    registry = ModelRegistry.of(call, store)
    info: dict[str, str | None] = {"version": version}
    answer = earlier(registry, ("approval", "rejection"), call, version, gate.digest)
    if version == decision["champion"] == registry.ledger.champion():
        verdict = Verdict(reasons=(f"version {version} is the champion already: nobody is asked",))
    elif answer is None and params.approved is None:
        verdict = Verdict(status="held", reasons=(f"version {version} waits for a person's approval",))
        info[QUESTION] = question(call, params, store, registry, version, decision)
    else:
        said_yes = answer.kind == "approval" if answer else bool(params.approved)
        reasons = answer.reasons if answer else (params.why or f"{params.by} {'approved' if said_yes else 'said no'}",)
        by = answer.by if answer else params.by
        if said_yes:
            registered = registry.api.version(registry.ref.model, version)
            registry.ledger.record(
                "approval",
                version=version,
                champion_before=decision["champion"],
                model=ref.digest,
                decision=gate.digest,
                reasons=reasons,
                requests=tuple(Requests(store, registry.ref.model).claimed_by(call.run)),
                run=call.run,
                by=by,
                window=call.window.key if call.window else None,
                card=registered.tags.get(CARD_TAG),
            )
            registry.api.log(registry.find_run(call) or registered.run_id, tags={"mlops.approval": "; ".join(reasons)})
        else:
            reject(
                call, store, registry, ref, decision=gate.digest, champion=decision["champion"], reasons=reasons, by=by
            )
        verdict = Verdict(status="ok" if said_yes else "rejected", reasons=reasons)
    return outcome_of(call, outputs={"decision": gate}, verdict=verdict, info=info)


def question(
    call: Call, params: Approve, store: Store, registry: ModelRegistry, version: str, decision: Mapping[str, Any]
) -> str:
    """The evidence as Markdown; what data and people have written is escaped.

    Args:
        call: whose run it is.
        params: how long the question waits.
        store: where requests and verdicts are.
        registry: where the version and the champion are.
        version: the version that is to become the champion.
        decision: the gate's own JSON.
    """
    model = registry.ref.model
    registered, promotion = registry.api.version(model, version), registry.ledger.promotion()
    facts: list[tuple[str, Cell]] = []
    links = (
        ("Model card", registered.tags.get(CARD_TAG)),
        ("Version", registry.version_url(version)),
        ("MLflow run", registry.run_url(registered.run_id)),
    )
    facts += [(name, Link(href, href)) for name, href in links if href]
    if call.window:
        facts.append(("Trained up to", call.window.key))
    since = f"version {promotion.version}, since {promotion.at:%Y-%m-%d %H:%M} UTC" if promotion else "none yet"
    window = f", trained up to {promotion.window}" if promotion and promotion.window else ""
    facts.append(("Champion", since + window))
    measured = [(name, f"{value:.4f}") for name, value in decision["metrics"].items()]
    compared = decision["comparison"]
    versus: list[tuple[str, Cell]] = []
    if compared:
        versus = [
            ("Metric", compared["metric"]),
            ("This version", f"{compared['challenger']:.4f}"),
            ("Champion", f"{compared['champion']:.4f}"),
            ("Gain", f"{compared['gain']:+.4f}"),
            (
                f"Bounds, {compared['confidence']:.0%} each",
                f"{compared['lower']:+.4f} to {compared['upper']:+.4f}",
            ),
            ("Rows that neither has seen", f"{compared['rows']:,}"),
        ]
    sections = [
        Section("The model", [Facts(facts), Table(("Metric", "On held-out rows"), measured)]),
        Section("Against the champion", [Bullets(decision["reasons"]), *([Facts(versus)] if versus else [])]),
        Section("What led here", [Bullets(_led_here(call, store, model))]),
        Section(
            "What an answer does",
            [
                Bullets(
                    [
                        "A yes makes it the champion, unless the champion moves meanwhile.",
                        f"A no, and no answer within {format_duration(params.timeout)}, leaves the champion as it is, "
                        "answers the requests that led here, and starts the cooldown.",
                    ]
                )
            ],
        ),
    ]
    lead = [Text(f"Version {version} has passed its gate.")]
    return as_markdown(Document(f"Promote version {version} of {model}?", lead, sections))


def _led_here(call: Call, store: Store, model: str) -> list[Cell]:
    """The requests that the run answers, each with where its report is."""
    found: list[Cell] = []
    for recorded in Requests(store, model).all():
        if recorded.run != call.run:
            continue
        asked = recorded.request
        verdicts = Verdicts(store, model).of_window(asked.window.key) if asked.window else []
        verdict: Mapping[str, Any] = next(
            (each for each in reversed(verdicts) if each.get("trigger", "drift") == asked.trigger), {}
        )
        found.append(f"{asked.reason} (request {asked.id})")
        links = (verdict.get("report_url") or asked.evidence, verdict.get("mlflow_url"))
        found += [Link(str(href), str(href)) for href in links if href]
    return found or ["No retrain request: a schedule or a person started the training."]
