"""The DAG ``NAME.rollback``: one click, a reason, and everything follows."""

from __future__ import annotations

import pytest

from tests.airflow_fixtures import Airflow
from tests.stages.test_rollback import promoted


@pytest.fixture
def two(airflow: Airflow) -> Airflow:
    """Two champions, one after the other."""
    airflow.declare(retries=0)
    promoted(airflow.world, "a", "b")
    return airflow


def test_one_click_puts_the_champion_before_back(two: Airflow) -> None:
    run = two.run("rollback", conf={"reason": "wrong prices"})
    assert run.state == "success", run.errors
    entry = two.ledger()[-1]
    assert (entry.kind, entry.champion_before, entry.champion_after) == ("rollback", "2", "1")
    assert (entry.reasons, entry.run) == (("wrong prices",), f"{two.name}.rollback/{run.run_id}")
    # What waits for a new champion hears of it.
    (event,) = run.events
    assert (event["asset"], event["extra"]["version"]) == (f"x-mlops://{two.name}/model", "1")
    # A cleared task goes back no second step.
    again = two.clear("rollback", run.run_id, "rollback")
    assert again.state == "success" and len(two.ledger()) == 3


def test_a_version_may_be_named_and_a_wrong_one_fails_with_what_is_allowed(two: Airflow) -> None:
    wrong = two.run("rollback", conf={"reason": "wrong prices", "version": "7"})
    assert wrong.state == "failed" and len(two.ledger()) == 2
    assert "never was the champion; allowed: 1, 2" in str(wrong.errors["rollback"][0])
    assert two.run("rollback", conf={"reason": "wrong prices", "version": "1"}).state == "success"
    assert two.ledger()[-1].champion_after == "1"


def test_without_a_reason_no_run_starts(two: Airflow) -> None:
    with pytest.raises(Exception, match="reason"):
        two.dag("rollback").test()
    assert len(two.ledger()) == 2
