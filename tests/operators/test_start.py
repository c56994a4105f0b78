"""The first task of a training run: whose request it answers, and what another run holds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.spec.window import parse_key
from tests import toy
from tests.airflow_fixtures import Airflow

OWN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.sdk import task
from airflow_mlops.operators import StartRunOperator
with DAG("{name}.own", schedule=None) as dag:
    start = StartRunOperator(
        task_id="start", pipeline="{name}", source="data/{{window}}.parquet", grain="month",
        upstream_models=["{name}-prices"],
        retrain={{"cooldown": "0s", "triggers": ["drift", {{"model": "{name}-prices"}}]}},
    )

    @task(retries=1, retry_delay=timedelta(hours=1))
    def later() -> None:
        raise RuntimeError("the run goes on")

    start >> later()
"""


@pytest.fixture
def own(airflow: Airflow) -> Airflow:
    """A DAG that starts a run and then does not come to an end."""
    toy.months(airflow.folder, ("2024-01", "2024-02", "2024-03"), 10)
    airflow.write(OWN.format(name=airflow.name))
    return airflow


def ask(airflow: Airflow, window: str = "2024-02") -> str:
    """Record a request for a window."""
    request = Request(
        model=airflow.name, champion="1", reason="drift", trigger="drift", window=parse_key("month", window)
    )
    assert Requests(airflow.store, airflow.name).open(request)
    return request.id


@pytest.mark.parametrize("run_type", ["asset_triggered", "manual"])
def test_any_run_answers_what_is_pending_with_the_window_asked_for(own: Airflow, run_type: str) -> None:
    ids = {ask(own, "2024-01"), ask(own, "2024-02")}

    run = own.run(f"{own.name}.own", run_type)

    started = run.xcom["start", "return_value"]
    assert set(started["requests"]) == ids
    assert started["window"][2] == "2024-02"
    assert {recorded.run for recorded in own.requests()} == {f"{own.name}.own/{run.run_id}"}


@pytest.mark.parametrize("wanted", ["2024-01", "2024-03"])
def test_a_scheduled_run_answers_with_the_newer_of_its_own_window_and_the_one_asked_for(
    own: Airflow, wanted: str
) -> None:
    ids = [ask(own, wanted)]
    at = datetime(2024, 3, 1, tzinfo=UTC)
    run = own.run(f"{own.name}.own", "scheduled", logical_date=at, data_interval=(at, at))
    started = run.xcom["start", "return_value"]
    assert (started["requests"], started["window"][2]) == (ids, max("2024-02", wanted))


def test_a_person_s_window_stands_over_a_request_s(own: Airflow) -> None:
    ask(own)
    run = own.run(f"{own.name}.own", conf={"window": "2024-03"})
    assert run.xcom["start", "return_value"]["window"][2] == "2024-03"
    assert len(run.xcom["start", "return_value"]["requests"]) == 1


def test_a_request_is_held_as_long_as_its_run_goes_on(own: Airflow) -> None:
    request = ask(own)
    holder = own.run(f"{own.name}.own", "asset_triggered")
    assert (holder.state, holder.states) == ("running", {"start": "success", "later": "up_for_retry"})

    surplus = own.run(f"{own.name}.own", "asset_triggered")
    assert (surplus.state, surplus.states["start"]) == ("success", "skipped")
    by_hand = own.run(f"{own.name}.own")
    assert by_hand.xcom["start", "return_value"]["requests"] == []

    end(holder.run_id)
    heir = own.run(f"{own.name}.own", "asset_triggered")
    assert heir.xcom["start", "return_value"]["requests"] == [request]


def end(run_id: str) -> None:
    """Mark a run as failed, as a person does in Airflow."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import update

    with create_session() as session:
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state=DagRunState.FAILED))


PRICES = """
from airflow.sdk import DAG, task
from airflow_mlops.operators import model_asset
with DAG("{name}.prices", schedule=None) as dag:
    @task(outlets=[model_asset("{name}-prices")])
    def promote(*, outlet_events) -> None:
        outlet_events[model_asset("{name}-prices")].extra = {{"version": "7"}}

    promote()
"""


def test_another_pipeline_s_promotion_is_a_request(own: Airflow) -> None:
    own.write(PRICES.format(name=own.name), "prices.py")
    (event,) = own.test(f"{own.name}.prices").events

    run = own.run(f"{own.name}.own", "asset_triggered", events=[event["id"]])

    (recorded,) = own.requests()
    assert recorded.request.reason == f"{own.name}-prices has promoted version 7"
    assert recorded.request.trigger == "model"
    assert run.xcom["start", "return_value"]["requests"] == [recorded.request.id]
    assert run.xcom["start", "return_value"]["window"][2] == "2024-03"
    again = own.run(f"{own.name}.own", "asset_triggered", events=[event["id"]])
    assert again.states["start"] == "skipped"
