"""The person between the gate and the promotion, in the DAG that the declaration makes for it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_mlops.registry.models import NOTE_TAG
from tests import toy
from tests.airflow_fixtures import Airflow, Run
from tests.toy import Trained

ASKING = {"approval": {"users": "7", "timeout": "1s"}}


def asked(airflow: Airflow, month: str = "2024-01", **sections: Any) -> Run:
    """A training that waits for its approval."""
    airflow.declare(**{**ASKING, **sections})
    run = airflow.run("train", conf={"window": month})
    assert run.states["approve"] == "awaiting_input" and run.states["promote"] is None
    return run


def test_a_yes_promotes_and_is_on_record_with_who_and_why(untried: Airflow) -> None:
    asking = asked(untried, approval={"timeout": "24h"})
    question = untried.question(asking, "approve")
    assert (question.subject, question.defaults) == (f"Promote version 1 of {untried.name}?", ["Reject"])
    body = question.body.replace("\\", "")
    for part in (
        "roc_auc",
        "model_card.html",
        "there is no champion yet",
        "| Champion | none yet |",
        "No retrain request",
        "no answer within 1d",
    ):
        assert part in body, (part, body)
    assert untried.ledger() == []

    done = untried.answer("train", asking, "approve", "Approve", reason="looks right")

    assert done.state == "success" and done.states["promote"] == "success"
    approval, promotion = untried.ledger()
    assert (approval.kind, approval.version, approval.by) == ("approval", "1", "ann")
    assert approval.reasons == ("ann approved: looks right",)
    assert (promotion.kind, promotion.champion_after) == ("promotion", "1")
    # Cleared, it asks nobody again; and a training that finds the champion again asks nobody either.
    again = untried.clear("train", asking.run_id, "approve", "promote")
    assert again.state == "success" and len(untried.ledger()) == 2
    same = untried.run("train", conf={"window": "2024-01"})
    assert same.state == "success" and same.states["promote"] == "success" and len(untried.ledger()) == 2


def test_a_no_is_a_rejection_with_who_and_why_and_the_run_succeeds(untried: Airflow) -> None:
    asking = asked(untried)
    with pytest.raises(Exception, match="not a respondent"):
        untried.answer("train", asking, "approve", "Reject")

    done = untried.answer("train", asking, "approve", "Reject", user="7", reason="not before the holidays")

    assert done.state == "success" and done.states["promote"] == "skipped"
    (entry,) = untried.ledger()
    assert (entry.kind, entry.version, entry.by, entry.champion_after) == ("rejection", "1", "7", None)
    assert entry.reasons == ("7 said no: not before the holidays",)
    registry = toy.registry_of(untried.world.store, untried.world.registry)
    version = registry.api.version(untried.name, "1")
    assert version.tags["mlops.verdict"] == "rejected"
    assert registry.api.logged(version.run_id).tags[NOTE_TAG].startswith("**rejected**: 7 said no")
    assert registry.api.aliases(untried.name) == {}
    # The cooldown counts from here, and clearing does not ask again.
    assert registry.ledger.decided() == entry
    again = untried.clear("train", asking.run_id, "approve", "promote")
    assert (again.state, again.states["promote"]) == ("success", "skipped")
    assert len(untried.ledger()) == 1


def test_silence_means_no(untried: Airflow) -> None:
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    asking = asked(untried)
    time.sleep(1.1)
    SchedulerJobRunner(job=Job()).check_awaiting_input_timeouts()

    over = untried.resume("train", asking, "approve")

    assert over.state == "success" and over.states["promote"] == "skipped"
    (entry,) = untried.ledger()
    assert (entry.kind, entry.by, entry.reasons) == ("rejection", None, ("nobody answered within 1s",))


def test_the_drift_that_led_here_is_shown_and_its_request_settled(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder, ("2024-01", "2024-03"))
    toy.months(airflow.folder, ("2024-02",), shift=3.0)
    airflow.declare()
    airflow.promote(january)
    (event,) = airflow.test("monitor", "2024-02").events
    airflow.declare(approval={}, validate_model={"versus_champion": {"margin": 0.9, "min_rows": 10}})

    asking = airflow.run("train", "asset_triggered", events=[event["id"]])

    body = airflow.question(asking, "approve").body.replace("\\", "")
    (recorded,) = airflow.requests()
    for part in ("drift in 2024-02", recorded.request.id, "/artifacts/", "| Gain |", "version 1, since"):
        assert part in body, (part, body)
    airflow.answer("train", asking, "approve", "Reject")
    (recorded,) = airflow.requests()
    assert recorded.state == "done" and "ann said no" in recorded.last.told
    assert airflow.ledger()[-1].requests == (recorded.request.id,)


def test_nobody_is_asked_about_what_the_gate_rejects(untried: Airflow) -> None:
    untried.declare(approval={}, validate_model={"min": {"roc_auc": 0.999}})
    run = untried.run("train", conf={"window": "2024-01"})
    assert run.state == "success"
    assert (run.states["approve"], run.states["promote"]) == ("skipped", "skipped")
