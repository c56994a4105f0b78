"""The train DAG, run: a first champion, a rejected challenger, and what XCom holds afterwards."""

from __future__ import annotations

import json

import pytest

from airflow_mlops.operators.links import ModelCardLink
from airflow_mlops.registry.models import NOTE_TAG
from tests import toy
from tests.airflow_fixtures import Airflow

STAGES = ["extract", "validate_data", "prepare", "train", "register", "evaluate", "validate_model", "promote"]


@pytest.fixture
def toy_months(airflow: Airflow) -> Airflow:
    """The toy pipeline with two months of data."""
    toy.months(airflow.folder, ("2024-01", "2024-02"), 1500)
    airflow.declare()
    return airflow


def test_the_first_model_becomes_champion_and_rows_stay_out_of_xcom(toy_months: Airflow) -> None:
    run = toy_months.test("train", "2024-01")

    assert run.state == "success"
    assert run.states == dict.fromkeys(["start", *STAGES], "success")
    assert toy.state_of(toy_months.world)["aliases"] == {"champion": "1"}
    (entry,) = toy_months.ledger()
    assert (entry.kind, entry.version, entry.window) == ("promotion", "1", "2024-01")
    assert [(event["asset"], event["extra"]) for event in run.events] == [
        (f"x-mlops://{toy_months.name}/model", {"version": "1"})
    ]
    assert run.xcom["start", "return_value"]["window"][2] == "2024-01"
    cards = {run.xcom[task, "card_url"] for task in ("evaluate", "validate_model", "promote")}
    assert cards == {entry.card}
    assert run.xcom["promote", ModelCardLink().xcom_key] == entry.card
    assert {task for task, key in run.xcom if key == "return_value"} == {"start", *STAGES}
    for (task, key), value in run.xcom.items():
        text = json.dumps(value)
        assert len(text) < 4096, f"{task} has put {len(text)} bytes into XCom as {key}"
        assert "2024-01/0" not in text, f"{task} has put a row's key into XCom as {key}"


def test_a_model_that_is_not_better_is_rejected_and_changes_nothing(toy_months: Airflow) -> None:
    toy_months.promote(toy.train(toy_months.world, "2024-01"))
    before = toy.state_of(toy_months.world)

    toy_months.declare(train={"params": {"C": 0.5}})
    run = toy_months.test("train", "2024-01")

    assert run.state == "success"
    assert run.states == {**dict.fromkeys(["start", *STAGES], "success"), "promote": "skipped"}
    assert run.events == []
    (first, rejection) = toy_months.ledger()
    assert (rejection.kind, rejection.version, rejection.champion_after) == ("rejection", "2", "1")
    assert "champion 1" in rejection.reasons[0]
    after = toy.state_of(toy_months.world)
    assert after["aliases"] == before["aliases"]
    assert after["ledger"][:1] == [first]
    assert after["versions"][0] == before["versions"][0]
    registry = toy.registry_of(toy_months.world.store, toy_months.world.registry)
    version = registry.api.version(toy_months.name, "2")
    note = _tags(toy_months, version.run_id)[NOTE_TAG]
    assert rejection.reasons[0][1:] in note


def _tags(airflow: Airflow, run_id: str) -> dict[str, str]:
    from mlflow import MlflowClient

    tags: dict[str, str] = MlflowClient(airflow.world.registry.uri).get_run(run_id).data.tags
    return tags
