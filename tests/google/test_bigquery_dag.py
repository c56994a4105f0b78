"""A pipeline whose data lie in BigQuery, in a real Airflow: trained, and watched without a row being read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from airflow_mlops.errors import CloudAccessError
from airflow_mlops.registry.verdicts import Verdicts
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.loopback.gcs import PROJECT
from tests.toy import Trained


@pytest.fixture
def lake(airflow: Airflow, bigquery: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The toy rows of three months, and the Airflow connection that leads to them."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_LAKE")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    bigquery.load("shop.toy", pa.concat_tables([toy.rows(month) for month in toy.MONTHS]))
    extra = json.dumps({"is_anonymous": True, "project": PROJECT})
    with create_session() as meta:
        meta.add(Connection(conn_id="lake", conn_type="google_cloud_platform", extra=extra))
    yield bigquery
    with create_session() as meta:
        meta.query(Connection).filter_by(conn_id="lake").delete()


def test_a_pipeline_trains_on_bigquery_and_is_watched_without_a_row(airflow: Airflow, lake: Any) -> None:
    airflow.declare(
        data={"source": {"connection": "lake", "table": "shop.toy"}}, train={"windows": {"last": 2}}, retries=0
    )

    run = airflow.test("train", "2024-02")

    assert run.state == "success", run.errors
    assert run.xcom["extract", "return_value"]["metrics"] == {"rows": 800.0}
    assert run.states["promote"] == "success"
    assert len(lake.statements) == 1

    judged = airflow.test("monitor", "2024-03")
    assert judged.state == "success", judged.errors
    (verdict,) = Verdicts(airflow.store, airflow.name, "data_drift").of_window("2024-03")
    assert (verdict["status"], verdict["rows"]) == ("ok", 400)
    assert {each["column"] for each in verdict["columns"]} == {"amount", "age", "region", "member"}
    # One statement, which names neither the key nor the target.
    assert len(lake.statements) == 2
    assert "levels AS" in lake.statements[1]
    assert "`y`" not in lake.statements[1]

    # A verdict on the same window reads the profile that was kept.
    airflow.test("monitor", "2024-03")
    assert len(lake.statements) == 2


def test_drift_is_found_there(airflow: Airflow, lake: Any, january: Trained) -> None:
    airflow.declare(data={"source": {"connection": "lake", "table": "shop.toy"}}, retries=0)
    airflow.promote(january)
    lake.load("shop.toy", toy.rows("2024-03", shift=2.0))
    judged = airflow.test("monitor", "2024-03")
    assert judged.state == "success", judged.errors
    (verdict,) = Verdicts(airflow.store, airflow.name, "data_drift").of_window("2024-03")
    assert verdict["alarm"]
    assert verdict["moved"] == ["amount"]


def test_a_missing_role_is_said_by_the_task(airflow: Airflow, lake: Any) -> None:
    from tests.loopback.bigquery import BigQueryError

    airflow.declare(data={"source": {"connection": "lake", "table": "shop.toy"}}, retries=0)
    words = (
        f"Access Denied: Project {PROJECT}: User does not have bigquery.jobs.create permission in project {PROJECT}."
    )
    lake.fail("POST", BigQueryError("accessDenied", 403, words), times=9)
    error = airflow.test("train", "2024-02").error("extract")
    assert isinstance(error, CloudAccessError)
    assert "'lake' the role roles/bigquery.jobUser" in str(error)
