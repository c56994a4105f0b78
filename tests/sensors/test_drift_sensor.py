"""The drift sensor in the monitor DAG: quiet windows, a drifted one and what answers it, and windows to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from airflow_mlops.errors import DataNotFoundError, ModelNotFoundError
from airflow_mlops.registry.verdicts import Verdicts
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.toy import Trained


def test_a_window_without_drift_rings_no_bell(champion: Airflow) -> None:
    run = champion.test("monitor", "2024-02")

    assert run.state == "success"
    assert run.xcom["data_drift", "return_value"]["verdict"]["status"] == "ok"
    assert run.events == []
    assert champion.requests() == []
    assert run.xcom["data_drift", "mlflow_url"].startswith(champion.world.registry.uri)
    # The report is made on an alarm only.
    assert run.xcom["data_drift", "report_url"] == ""


def test_a_judged_window_is_followed_by_the_next(champion: Airflow) -> None:
    assert champion.test("monitor", "2024-02").state == "success"

    run = champion.test("monitor")

    assert run.xcom["data_drift", "return_value"]["window"][2] == "2024-03"


def test_drift_asks_once_and_one_run_answers(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder, ("2024-01", "2024-03"))
    toy.months(airflow.folder, ("2024-02",), shift=3.0)
    airflow.declare()
    airflow.promote(january)

    monitor = airflow.test("monitor", "2024-02")

    assert monitor.state == "success"
    (recorded,) = airflow.requests()
    assert recorded.state == "started"
    assert (recorded.request.window.key, recorded.request.champion) == ("2024-02", "1")
    (event,) = monitor.events
    assert event["asset"] == f"x-mlops://{airflow.name}/retrain"
    assert event["extra"]["request"] == recorded.request.id
    assert event["extra"]["window"] == "2024-02"
    assert "amount" in event["extra"]["reason"]

    # Two schedulers may start a run each of one event: the second finds nothing left to do.
    answer = airflow.run("train", "asset_triggered", events=[event["id"]])
    assert answer.state == "success"
    assert answer.xcom["start", "return_value"]["requests"] == [recorded.request.id]
    assert answer.xcom["start", "return_value"]["window"][2] == "2024-02"
    assert airflow.requests()[0].state == "done"
    assert airflow.ledger()[-1].requests == (recorded.request.id,)
    surplus = airflow.run("train", "asset_triggered", events=[event["id"]])
    assert surplus.state == "success"
    assert surplus.states == dict.fromkeys(answer.states, "skipped")
    assert len(airflow.ledger()) == 2

    # The window is judged once more: the request is known and answered, and nothing rings.
    again = airflow.test("monitor", "2024-02")
    assert again.events == []
    assert len(airflow.requests()) == 1


@pytest.fixture
def drifted(champion: Airflow) -> Iterator[Airflow]:
    """A champion whose February has drifted; the test declares the policy."""
    kept = (champion.folder / f"{champion.name}.yaml").read_text()
    toy.months(champion.folder, ("2024-02",), shift=3.0)
    yield champion
    (champion.folder / f"{champion.name}.yaml").write_text(kept)
    toy.months(champion.folder, ("2024-02",))


def test_a_request_that_nobody_has_answered_rings_again(drifted: Airflow) -> None:
    (first,) = drifted.test("monitor", "2024-02").events

    (second,) = drifted.test("monitor", "2024-03").events

    assert second["extra"] == first["extra"]
    assert len(drifted.requests()) == 1


@pytest.mark.parametrize(
    ("retrain", "state"),
    [
        ({"mode": "observe"}, "recorded"),
        ({"triggers": []}, "recorded"),
        ({"cooldown": "30d"}, "held"),
        ({"mode": "suggest"}, "suggested"),
    ],
)
def test_drift_starts_no_training_where_the_policy_does_not(
    drifted: Airflow, retrain: dict[str, object], state: str
) -> None:
    champion = drifted
    champion.declare(retrain=retrain)
    run = champion.test("monitor", "2024-02")

    assert run.state == "success"
    assert run.xcom["data_drift", "return_value"]["verdict"]["status"] == "drift"
    suggestion = f"x-mlops://{champion.name}/suggestion"
    assert [event["asset"] for event in run.events] == ([suggestion] if state == "suggested" else [])
    (recorded,) = champion.requests()
    assert recorded.state == state


def test_what_is_held_starts_in_the_monitoring_run_after_the_limit(drifted: Airflow) -> None:
    drifted.declare(retrain={"cooldown": "30d"})
    assert drifted.test("monitor", "2024-02").events == []
    (held,) = drifted.requests()
    assert held.last.until == drifted.ledger()[-1].at + timedelta(days=30)

    drifted.declare(retrain={"cooldown": "0s"})
    (event,) = drifted.test("monitor", "2024-02").events

    assert event["extra"]["request"] == held.request.id
    assert [step.state for step in drifted.requests()[0].steps] == ["held", "started"]


def test_what_is_held_is_withdrawn_when_a_newer_window_is_quiet(drifted: Airflow) -> None:
    drifted.declare(retrain={"cooldown": "30d"})
    drifted.test("monitor", "2024-02")
    drifted.declare(retrain={"cooldown": "0s"})

    assert drifted.test("monitor", "2024-03").events == []

    (withdrawn,) = drifted.requests()
    assert (withdrawn.state, withdrawn.last.why) == (
        "withdrawn",
        "window 2024-03 was judged since, and gave no reason to retrain",
    )


def test_without_a_champion_the_sensor_waits_and_finds_what_comes_later(airflow: Airflow, january: Trained) -> None:
    toy.months(airflow.folder, ("2024-01",))
    airflow.declare(monitor={"poll": "1s"})
    assert airflow.run("monitor", triggers=False).states == {"data_drift": "deferred"}

    def later() -> None:
        toy.months(airflow.folder, ("2024-02",))

    airflow.promote(january)
    timer = threading.Timer(2.0, later)
    timer.start()
    started = time.monotonic()
    run = airflow.test("monitor")
    timer.join()

    assert time.monotonic() - started >= 2.0
    assert run.state == "success"
    assert run.tries == {"data_drift": 1}
    assert run.xcom["data_drift", "return_value"]["window"][2] == "2024-02"


RESCHEDULING = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mlops.sensors import DataDriftSensor
with DAG("{name}.own", schedule=None) as dag:
    DataDriftSensor(
        task_id="data_drift", pipeline="{name}", source="data/{{window}}.parquet", grain="month", time="at",
        deferrable=False, poke_interval=1, {more}
    )
"""


def test_a_rescheduled_sensor_gives_its_worker_back_and_looks_again(champion: Airflow) -> None:
    champion.write(RESCHEDULING.format(name=champion.name, more=""), "own.py")
    for month in ("2024-02", "2024-03"):
        (champion.folder / "data" / f"{month}.parquet").unlink()
    assert champion.run(f"{champion.name}.own").states == {"data_drift": "up_for_reschedule"}
    timer = threading.Timer(2.0, toy.months, (champion.folder, ("2024-02", "2024-03")))
    timer.start()

    run = champion.test(f"{champion.name}.own")
    timer.join()

    assert run.state == "success"
    assert run.xcom["data_drift", "return_value"]["window"][2] == "2024-02"


def test_a_window_that_never_comes_ends_at_the_timeout(airflow: Airflow) -> None:
    airflow.write(RESCHEDULING.format(name=airflow.name, more="timeout=1, retries=2"), "own.py")

    run = airflow.test(f"{airflow.name}.own")

    assert run.state == "failed"
    assert run.tries == {"data_drift": 1}
    assert "timeout" in str(run.error("data_drift")).lower()


def test_a_window_to_judge_before_any_model_fails_at_once(airflow: Airflow) -> None:
    toy.months(airflow.folder, ("2024-02",))
    airflow.declare(retry_delay="0s")

    run = airflow.test("monitor", "2024-02")

    assert (run.state, run.tries) == ("failed", {"data_drift": 1})
    assert isinstance(run.error("data_drift"), ModelNotFoundError)
    assert "no champion yet" in str(run.error("data_drift"))


def test_a_key_that_is_no_window_fails_at_once(champion: Airflow) -> None:
    run = champion.test("monitor", "last month")

    assert (run.state, run.tries) == ("failed", {"data_drift": 1})
    assert isinstance(run.error("data_drift"), DataNotFoundError)
    assert "a key such as 2013-03" in str(run.error("data_drift"))


def test_a_window_that_cannot_be_judged_fails_once_and_is_not_met_again(champion: Airflow) -> None:
    table = toy.rows("2024-02").drop_columns(["amount"])
    toy.write(table, champion.folder / "data" / "2024-02.parquet")

    broken = champion.test("monitor")
    assert broken.state == "failed"
    assert "amount is missing" in str(broken.error("data_drift"))
    assert champion.requests() == []

    following = champion.test("monitor")
    assert following.xcom["data_drift", "return_value"]["window"][2] == "2024-03"

    toy.months(champion.folder, ("2024-02",))
    assert champion.test("monitor", "2024-02").state == "success"
    verdicts = Verdicts(champion.store, champion.name).of_window("2024-02")
    assert [verdict["status"] for verdict in verdicts] == ["error", "ok"]
