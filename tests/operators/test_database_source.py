"""A database as the source, in a real Airflow: its connection in the metadata database, PostgreSQL behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi

from airflow_mlops.errors import DataError
from airflow_mlops.registry import verdicts
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.window import shift, window_before
from airflow_mlops.stages import database
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.toy import Trained

PASSWORD = "s3cr3t-of-the-warehouse"
QUERY = "SELECT id, at, amount, age, region, member, y FROM toy_rows"


@pytest.fixture
def session(postgres: str) -> Iterator[dbapi.Connection]:
    with dbapi.connect(f"host={postgres} user=postgres dbname=postgres", autocommit=True) as session:
        yield session


@pytest.fixture
def warehouse(airflow: Airflow, postgres: str, session: dbapi.Connection) -> Iterator[dbapi.Connection]:
    """The toy rows of three months, and the Airflow connection that leads to them."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    with session.cursor() as cursor:
        rows = pa.concat_tables([toy.rows(month) for month in toy.MONTHS])
        cursor.adbc_ingest("toy_rows", rows, mode="replace")
    found = {"host": postgres, "login": "postgres", "password": PASSWORD, "schema": "postgres"}
    with create_session() as meta:
        meta.add(Connection(conn_id="warehouse", conn_type="postgres", **found))
    yield session
    with create_session() as meta:
        meta.query(Connection).filter_by(conn_id="warehouse").delete()


def source(**other: Any) -> dict[str, Any]:
    return {"source": {"connection": "warehouse", "query": QUERY, **other}}


def assert_no_secret(airflow: Airflow, *texts: object) -> None:
    assert PASSWORD not in str(texts)
    for file in airflow.folder.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


def test_a_pipeline_trains_on_a_database_and_reads_each_window_once(
    airflow: Airflow, warehouse: dbapi.Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    airflow.declare(data=source(), train={"windows": {"last": 2}}, retries=0)

    run = airflow.test("train", "2024-02")

    assert run.state == "success", run.errors
    assert run.xcom["extract", "return_value"]["metrics"] == {"rows": 800.0}
    assert run.states["promote"] == "success"
    # What was read is what later runs and the monitor get.
    with warehouse.cursor() as cursor:
        cursor.execute("DELETE FROM toy_rows WHERE at < '2024-03-01'")
        cursor.fetch_arrow_table()
    again = airflow.test("train", "2024-03")
    assert again.xcom["extract", "return_value"]["metrics"] == {"rows": 800.0}
    judged = airflow.test("monitor", "2024-03")
    assert judged.state == "success", judged.errors
    assert judged.xcom["data_drift", "return_value"]["metrics"]["rows"] == 400
    # By hand and without a window: the newest that has settled, which no row of the toy is in.
    empty = airflow.test("train")
    newest = window_before("month", datetime.now(UTC))
    assert f"has no rows in {shift('month', newest, -1).key} to {newest.key}" in str(empty.error("extract"))
    assert_no_secret(airflow, run.xcom, again.xcom, judged.xcom, *capfd.readouterr())


LABELS = "SELECT id, y FROM toy_rows WHERE at >= :start AND at < :end"


def test_labels_that_a_database_gets_later_are_looked_for_once_a_day(
    airflow: Airflow,
    warehouse: dbapi.Connection,
    january: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    toy.months(airflow.folder)
    rule = {"labels": {"connection": "warehouse", "query": LABELS}, "min_labels": 300}
    airflow.declare(monitor={"performance": rule}, retries=0)
    airflow.promote(january)
    assert airflow.test("predict", "2024-02").state == "success"

    def judged() -> Any:
        run = airflow.test("monitor_performance")
        assert run.state == "success", run.errors
        return run.xcom["performance", "return_value"]["verdict"]

    with warehouse.cursor() as cursor:
        cursor.execute("DELETE FROM toy_rows WHERE at >= '2024-02-01'")
        cursor.fetch_arrow_table()
    verdict = judged()
    assert verdict["status"] == "insufficient_data"
    assert "0 labels of 400 predictions have come; at least 300 are needed" in verdict["reasons"][0]
    with warehouse.cursor() as cursor:
        cursor.adbc_ingest("toy_rows", toy.rows("2024-02"), mode="append")
    # Only a query could tell that they are there.
    assert airflow.run("monitor_performance", triggers=False).states == {"performance": "deferred"}
    monkeypatch.setattr(verdicts, "_LOOK_AGAIN", timedelta(0))
    verdict = judged()
    assert verdict["status"] == "ok"
    assert "on 400 labels of 400 predictions" in verdict["reasons"][0]
    found = Verdicts(airflow.store, airflow.name, "performance").all()
    assert [(each["window"], each["labels"]) for each in found] == [("2024-02", None)]
    assert_no_secret(airflow, found, *capfd.readouterr())


OWN = """
from airflow.sdk import DAG
from airflow_mlops.operators import ExtractDataOperator, StartRunOperator
with DAG("own_sql", schedule=None, default_args={"retries": 1, "retry_delay": 0}):
    source = {"connection": "warehouse", "query": "SELECT * FROM toy_rows WHERE at < :end AND at >= :start"}
    start = StartRunOperator(task_id="start", source=source, grain="month", answers_requests=False)
    ExtractDataOperator(task_id="extract", source=source, grain="month", settle="1d", start=start.output)
"""


def test_a_team_s_own_dag_reads_a_window_by_parameters_and_survives_a_cut_connection(
    airflow: Airflow, warehouse: dbapi.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.write(OWN)
    monkeypatch.setattr(database, "BATCH_ROWS", 100)
    honest, fetches = database._PostgresRows._fetch, []

    def cut_once(rows: database._PostgresRows) -> pa.Table:
        fetches.append(1)
        if len(fetches) == 3:
            with warehouse.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'airflow-mlops'"
                )
                cursor.fetchall()
        return honest(rows)

    monkeypatch.setattr(database._PostgresRows, "_fetch", cut_once)

    run = airflow.run("own_sql", conf={"window": "2024-02"})

    assert run.state == "success"
    assert len(fetches) > 5
    assert run.tries["extract"] == 2
    assert run.xcom["extract", "return_value"]["metrics"] == {"rows": 400.0}
    assert len(list(Path(airflow.world.store).rglob("*.parquet"))) == 1


def test_a_connection_that_airflow_does_not_have(airflow: Airflow) -> None:
    airflow.declare(data=source(connection="nowhere"), retries=0)
    run = airflow.test("train", "2024-02")
    error = run.error("extract")
    assert isinstance(error, DataError)
    assert "airflow connections add nowhere" in str(error)


def test_the_command_line_takes_the_connection_from_the_environment(
    postgres: str, session: dbapi.Connection, tmp_path: Path
) -> None:
    with session.cursor() as cursor:
        cursor.adbc_ingest("toy_rows", toy.rows("2024-01"), mode="replace")
    toy.declare(tmp_path, data=source())
    code = """
import sys
from airflow_mlops.cli import main
status = main(["run", "toy.yaml", "--window", "2024-01", "--json"])
assert "airflow" not in sys.modules
sys.exit(status)
"""
    quoted = postgres.replace("/", "%2F")
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "AIRFLOW_CONN_WAREHOUSE": f"postgresql://postgres:{PASSWORD}@{quoted}/postgres"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["stages"]["extract"]["metrics"] == {"rows": 400.0}
    assert PASSWORD not in found.stdout + found.stderr
