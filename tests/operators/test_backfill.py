"""Runs about the past: they train, evaluate and judge, and promote only when they are told to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_mlops.errors import DeclarationError
from airflow_mlops.operators.window import promotion_of_run
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.spec.window import parse_key
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.operators.test_window import context_of

# Whatever passes: what these tests are about is what comes after the gate.
LENIENT = {"min": {"roc_auc": 0.5}, "versus_champion": None}


def tick(year: int, month: int) -> dict[str, Any]:
    """The dates of a cron tick, as Airflow gives them to a backfill's run."""
    at = datetime(year, month, 1, tzinfo=UTC)
    return {"logical_date": at, "data_interval": (at, at)}


@pytest.fixture
def months(untried: Airflow) -> Airflow:
    """Three months of data, and a gate that everything passes."""
    untried.declare(validate_model=LENIENT)
    return untried


def aliases(airflow: Airflow) -> Any:
    return toy.state_of(airflow.world)["aliases"]


def reasons(run: Any) -> list[str]:
    return list(run.xcom["validate_model", "return_value"]["verdict"]["reasons"])


def test_a_backfill_trains_and_judges_and_changes_nothing(months: Airflow) -> None:
    first = months.run("train", "backfill", **tick(2024, 2))

    assert first.state == "success"
    assert first.states["promote"] == "skipped"
    assert {state for task, state in first.states.items() if task != "promote"} == {"success"}
    assert first.xcom["start", "return_value"]["window"][2] == "2024-01"
    assert first.xcom["validate_model", "return_value"]["verdict"]["status"] == "held"
    assert reasons(first)[-1].startswith("not promoted: the run was told not to, or is a backfill")
    assert (months.ledger(), aliases(months), first.events) == ([], {}, [])
    (version,) = toy.state_of(months.world)["versions"]
    assert version.tags["mlops.verdict"] == "held"


def test_a_backfill_promotes_when_it_is_told_to(months: Airflow) -> None:
    run = months.run("train", "backfill", conf={"promote": True}, **tick(2024, 2))

    assert (run.state, run.states["promote"]) == ("success", "success")
    assert aliases(months) == {"champion": "1"}
    assert months.ledger()[0].window == "2024-01"


def test_a_window_older_than_the_champion_s_is_not_promoted_unless_told(airflow: Airflow) -> None:
    toy.months(airflow.folder)
    airflow.declare(validate_model=LENIENT)
    assert airflow.test("train", "2024-02").states["promote"] == "success"

    past = airflow.test("train", "2024-01")

    assert (past.state, past.states["promote"]) == ("success", "skipped")
    assert reasons(past)[-1] == (
        "not promoted: this run is about the past window 2024-01, and champion 1 knows 2024-02; to promote it all the "
        "same, run it with `promote: true`"
    )
    assert (len(airflow.ledger()), aliases(airflow)) == (1, {"champion": "1"})
    assert airflow.run("train", conf={"window": "2024-01", "promote": True}).states["promote"] == "success"
    assert [entry.window for entry in airflow.ledger()] == ["2024-02", "2024-01"]
    assert airflow.run("train", conf={"window": "2024-03", "promote": False}).states["promote"] == "skipped"


def test_a_rejected_backfill_starts_no_cooldown(months: Airflow) -> None:
    months.declare(validate_model={"min": {"roc_auc": 1.0}, "versus_champion": None})
    run = months.run("train", "backfill", **tick(2024, 2))

    assert run.xcom["validate_model", "return_value"]["verdict"]["status"] == "rejected"
    assert (run.state, months.ledger()) == ("success", [])


def test_requests_are_left_to_the_runs_that_can_answer_them(months: Airflow) -> None:
    wish = Request(
        model=months.name, champion="1", reason="drift", trigger="drift", window=parse_key("month", "2024-02")
    )
    Requests(months.store, months.name).open(wish)

    backfill = months.run("train", "backfill", **tick(2024, 2))
    by_hand = months.run("train", conf={"window": "2024-01"})

    for run in (backfill, by_hand):
        assert run.xcom["start", "return_value"]["window"][2] == "2024-01"
        assert run.xcom["start", "return_value"]["requests"] == []
    assert [recorded.state for recorded in months.requests()] == ["started"]


@pytest.mark.parametrize(
    ("run_type", "told", "declared", "may"),
    [
        ("manual", None, None, None),
        ("scheduled", None, None, None),
        ("backfill", None, None, False),
        ("backfill", True, None, True),
        ("backfill", None, True, True),
        ("backfill", False, True, False),
        ("manual", True, False, True),
        ("manual", None, False, False),
    ],
)
def test_what_a_run_was_told_comes_first(
    run_type: str, told: bool | None, declared: bool | None, may: bool | None
) -> None:
    assert promotion_of_run(context_of(run_type, {"promote": told}), declared) is may
    assert promotion_of_run(context_of(run_type, conf={"promote": told}), declared) is may


def test_what_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"'promote' is 'yes'; allowed: true, false"):
        promotion_of_run(context_of("manual", conf={"promote": "yes"}), None)
