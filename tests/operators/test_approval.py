"""The question whether to retrain, in the DAG that the declaration makes for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_mlops.registry.models import NOTE_TAG
from tests import toy
from tests.airflow_fixtures import Airflow, Run
from tests.toy import Trained

UNLIMITED = {"cooldown": "0s", "max_per_week": None}


def ask(airflow: Airflow, window: str = "2024-02") -> Run:
    """Let a drifted window be judged, and start the run that asks about it."""
    monitor = airflow.test("monitor", window)
    (event,) = monitor.events
    assert event["asset"] == f"x-mlops://{airflow.name}/suggestion"
    return airflow.run("retrain", "asset_triggered", events=[event["id"]])


def last(airflow: Airflow) -> Any:
    return airflow.requests()[-1].last


@pytest.fixture
def suggesting(champion: Airflow) -> Iterator[Airflow]:
    """A champion whose drift is put to a person; its February has drifted."""
    kept = (champion.folder / f"{champion.name}.yaml").read_text()
    toy.months(champion.folder, ("2024-02",), shift=3.0)
    champion.declare(retrain={"mode": "suggest", "approval": {"users": "7", "timeout": "1s"}, **UNLIMITED})
    yield champion
    (champion.folder / f"{champion.name}.yaml").write_text(kept)
    toy.months(champion.folder)


def test_a_person_reads_the_evidence_approves_and_one_training_answers(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder, ("2023-12", "2024-01", "2024-03"))
    toy.months(airflow.folder, ("2024-02",), shift=3.0)
    airflow.declare(retrain={"mode": "suggest", **UNLIMITED}, train={"windows": {"last": 2}})
    airflow.promote(january)

    asking = ask(airflow)

    assert asking.states == {"approve": "awaiting_input"}
    question = airflow.question(asking, "approve")
    assert (question.subject, question.defaults) == (f"Retrain {airflow.name}?", ["Reject"])
    body = question.body.replace("\\", "")
    for part in (
        "drift in 2024-02",
        "- amount moved by",
        "| Window | 2024-02, 400 rows |",
        "| Champion | version 1, since ",
        "trained up to 2024-01",
        f"{airflow.world.registry.uri}/#/experiments/",
        f"/mlops/models/{airflow.name}",
        "Windows 2024-01 to 2024-02 of data/{window}.parquet, fitted with sklearn.linear_model.LogisticRegression.",
        "0 were started in the last 7 days",
        "no answer within 3d, starts the cooldown of 0s",
    ):
        assert part in body, (part, body)
    # The question holds nobody up: monitoring goes on and asks nothing more, and a second event finds it asked.
    assert airflow.test("monitor", "2024-03").events == []
    assert airflow.run("retrain", "asset_triggered").states == {"approve": "skipped"}

    approved = airflow.answer("retrain", asking, "approve", "Approve")

    assert approved.state == "success"
    (event,) = approved.events
    assert event["asset"] == f"x-mlops://{airflow.name}/retrain"
    assert (last(airflow).state, last(airflow).by) == ("started", "ann")
    answer = airflow.run("train", "asset_triggered", events=[event["id"]])
    assert answer.state == "success" and answer.states["train"] == "success"
    (recorded,) = airflow.requests()
    assert recorded.state == "done"
    registry = toy.registry_of(airflow.world.store, airflow.world.registry)
    tags = registry.api.logged(answer.xcom["train", "return_value"]["info"]["run_id"]).tags
    assert tags["mlops.requests"] == f"{recorded.request.id}: drift in 2024-02, approved by ann"
    assert NOTE_TAG in tags


def test_a_no_is_on_record_and_starts_nothing(suggesting: Airflow) -> None:
    asking = ask(suggesting)
    assert suggesting.question(asking, "approve").assignees == [{"id": "7", "name": "7"}]
    with pytest.raises(Exception, match="not a respondent"):
        suggesting.answer("retrain", asking, "approve", "Reject")

    refused = suggesting.answer("retrain", asking, "approve", "Reject", user="7")

    assert (refused.state, refused.events) == ("success", [])
    assert (last(suggesting).state, last(suggesting).by, last(suggesting).why) == ("rejected", "7", "7 said no")
    # The window is judged once more: it was decided, and nobody is asked again.
    assert suggesting.test("monitor", "2024-02").events == []


def test_silence_means_no(suggesting: Airflow) -> None:
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    asking = ask(suggesting)
    time.sleep(1.1)
    SchedulerJobRunner(job=Job()).check_awaiting_input_timeouts()

    over = suggesting.resume("retrain", asking, "approve")

    assert (over.state, over.events) == ("success", [])
    assert (last(suggesting).state, last(suggesting).by) == ("rejected", None)
    assert last(suggesting).why == "nobody answered within 1s"


def test_a_question_that_a_training_has_answered_meanwhile_starts_nothing(suggesting: Airflow) -> None:
    from airflow_mlops.registry import Requests

    asking = ask(suggesting)
    requests = Requests(suggesting.store, suggesting.name)
    requests.claim(f"{suggesting.name}.train/scheduled", lambda run: True)

    approved = suggesting.answer("retrain", asking, "approve", "Approve", user="7")

    assert (approved.state, approved.events) == ("success", [])
    assert last(suggesting).state == "claimed"


def test_a_try_after_an_approval_rings_and_asks_no_more(suggesting: Airflow) -> None:
    asking = ask(suggesting)
    suggesting.answer("retrain", asking, "approve", "Approve", user="7")

    again = suggesting.clear("retrain", asking.run_id, "approve")

    assert again.state == "success"
    assert [event["asset"] for event in again.events[1:]] == [f"x-mlops://{suggesting.name}/retrain"]


def test_nothing_to_ask_is_skipped(suggesting: Airflow) -> None:
    assert suggesting.run("retrain").states == {"approve": "skipped"}
