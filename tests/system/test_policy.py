"""The retrain policy under a real scheduler: a storm of alarms, and a person who is asked through the REST API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_mlops.cli.services import Services
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.policy import Recorded, starts
from airflow_mlops.registry.requests import Requests
from tests.system.test_loop import ENDED, arrive, parsed, states, store, until

STORM = ("storm1", "storm2", "storm3")
READING = timedelta(seconds=3)


def test_a_storm_of_alarms_starts_one_training_a_model(running: Services) -> None:
    until(running, lambda: {"storm", *(f"{model}.train" for model in STORM)} <= parsed(running))
    for _ in range(2):
        running.trigger("storm")
    # Airflow fails one of two tasks that update an asset through the same alias for the first time at one moment; what
    # it has asked is on record all the same.
    until(running, lambda: set(states(running, "storm").values()) <= set(ENDED))
    until(running, lambda: all(trained(running, model) for model in STORM))
    until(running, lambda: all(set(states(running, f"{model}.train").values()) <= set(ENDED) for model in STORM))

    for model in STORM:
        recorded = Requests(store(running), model).all()
        assert len(recorded) == 10
        assert len(starts(recorded)) == 1
        # One run has trained, and it answers for all that waited when it began; what came later is held.
        assert len(trained(running, model)) == 1
        assert {each.state for each in recorded} <= {"done", "held"}
        assert {each.run for each in recorded if each.state == "done"} == set(trained(running, model))
        assert "failed" not in states(running, f"{model}.train").values()


def trained(running: Services, model: str) -> list[str]:
    """The runs whose training was not skipped."""
    runs = [run["dag_run_id"] for run in running.runs(f"{model}.train")]
    return [f"{model}.train/{run}" for run in runs if running.tasks(f"{model}.train", run).get("train") == "success"]


def test_a_person_is_asked_and_only_a_yes_trains(running: Services) -> None:
    name = "asking"
    until(running, lambda: {f"{name}.train", f"{name}.retrain", "asking_alarm"} <= parsed(running))
    arrive(running, name, "2024-01")

    running.trigger("asking_alarm", {"month": "2024-01"})
    asking = question(running, name, 0)
    assert "drift in 2024-01" in asking["body"]
    assert states(running, f"{name}.train") == {}
    until(running, lambda: answered(running, name, 0, "Approve", "done"))
    recorded = one(running, name, 0)
    assert [step.state for step in recorded.steps] == ["suggested", "asking", "started", "claimed", "done"]
    assert recorded.steps[2].by
    assert Ledger(store(running), name).champion() == "1"
    assert len(states(running, f"{name}.train")) == 1

    running.trigger("asking_alarm", {"month": "2024-02"})
    question(running, name, 1)
    until(running, lambda: answered(running, name, 1, "Reject", "rejected"))
    assert one(running, name, 1).last.by == recorded.steps[2].by
    until(running, lambda: set(states(running, f"{name}.retrain").values()) == {"success"})
    assert len(states(running, f"{name}.train")) == 1


def one(running: Services, name: str, index: int) -> Recorded:
    return Requests(store(running), name).all()[index]


def question(running: Services, name: str, index: int) -> Any:
    """Wait until a person is asked for the n-th time, and return the question."""
    return until(running, lambda: waiting(running, name, index))


def waiting(running: Services, name: str, index: int) -> Any:
    """The n-th question, while it waits for its answer, and has done so for as long as a person takes to read it."""
    every = running.airflow("GET", "dags/~/dagRuns/~/hitlDetails?order_by=created_at&limit=10")["hitl_details"]
    mine = [each for each in every if each["task_instance"]["dag_id"] == f"{name}.retrain"]
    if len(mine) != index + 1 or mine[-1]["task_instance"]["state"] != "awaiting_input":
        return None
    return mine[-1] if datetime.now(UTC) - datetime.fromisoformat(mine[-1]["created_at"]) > READING else None


def answered(running: Services, name: str, index: int, option: str, state: str) -> bool:
    """Answer what is asked until a request has come to a state.

    Whoever answers while the worker that asked has not quite ended is asked again: Airflow takes its end for a failure,
    and asks no oftener than the task is tried.
    """
    if one(running, name, index).state == state:
        return True
    asking = waiting(running, name, index)
    if asking and not asking["response_received"]:
        answer(running, asking, option)
    return False


def answer(running: Services, asking: Any, option: str) -> None:
    task = asking["task_instance"]
    path = f"dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}/-1/hitlDetails"
    running.airflow("PATCH", path, {"chosen_options": [option]})
