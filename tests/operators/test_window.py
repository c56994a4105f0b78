"""Which window a run is about, by what started it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRun

from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.operators.window import window_from, window_of_run
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import parse_key, window_at
from tests import toy
from tests.airflow_fixtures import Airflow

TICK = datetime(2024, 3, 1, tzinfo=UTC)
FEBRUARY = datetime(2024, 2, 1, tzinfo=UTC)
MID_FEBRUARY = datetime(2024, 2, 15, tzinfo=UTC)
NO_DATES: dict[str, Any] = {"logical_date": None, "data_interval_start": None, "data_interval_end": None}


def context_of(run_type: str, params: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    """What a task is told of its run; by default one of a cron schedule, whose interval has no width."""
    body = {
        "dag_id": "toy.train",
        "run_id": "run",
        "logical_date": TICK,
        "data_interval_start": TICK,
        "data_interval_end": TICK,
        "run_after": TICK + timedelta(seconds=1),
        "start_date": TICK + timedelta(seconds=2),
        "run_type": run_type,
        "end_date": None,
        "state": "running",
        "consumed_asset_events": [],
        "partition_key": None,
        **given,
    }
    # This is the very object of a worker, whose run type is an enumeration and not a text.
    return {"dag_run": DagRun.model_validate(body), "params": params or {}}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source whose newest window is May, with a file beside it that is none."""
    toy.months(tmp_path, ("2024-01", "2024-02", "2024-05"), 1)
    toy.write(toy.rows("2024-01", 1), tmp_path / "data" / "2024-13.parquet")
    return f"{tmp_path}/data/{{window}}.parquet"


@pytest.mark.parametrize(
    ("context", "key"),
    [
        (context_of("scheduled"), "2024-02"),
        (context_of("scheduled", data_interval_start=FEBRUARY, logical_date=FEBRUARY), "2024-02"),
        (context_of("scheduled", **{**NO_DATES, "logical_date": TICK}), "2024-02"),
        (context_of("scheduled", **NO_DATES), "2024-02"),
        (context_of("scheduled", data_interval_end=datetime(2024, 3, 17, 5, tzinfo=UTC)), "2024-02"),
        (context_of("backfill"), "2024-02"),
        (context_of("backfill", data_interval_end=FEBRUARY), "2024-01"),
        (context_of("manual"), "2024-05"),
        (context_of("manual", **NO_DATES), "2024-05"),
        (context_of("asset_triggered", **NO_DATES), "2024-05"),
        (context_of("asset_triggered", **NO_DATES, partition_key="2023-11"), "2023-11"),
        (context_of("scheduled", partition_key="2023-11"), "2023-11"),
        (context_of("manual", {"window": "2023-12"}), "2023-12"),
        (context_of("manual", {"window": None}), "2024-05"),
        (context_of("manual", {"window": ""}), "2024-05"),
        (context_of("manual", conf={"window": "2023-12"}), "2023-12"),
        (context_of("scheduled", {"window": "2023-12"}, partition_key="2023-11"), "2023-12"),
    ],
)
def test_the_window_of_a_run(context: dict[str, Any], key: str, source: str) -> None:
    assert window_of_run(context, "month", source) == parse_key("month", key)


@pytest.mark.parametrize("whole", ["data/all.parquet", None])
def test_a_source_that_comes_as_one_whole_has_a_window_only_by_schedule_or_choice(whole: str | None) -> None:
    assert window_of_run(context_of("manual"), "month", whole) is None
    assert window_of_run(context_of("asset_triggered", **NO_DATES), "month", whole) is None
    assert window_of_run(context_of("scheduled"), "month", whole) == parse_key("month", "2024-02")
    assert window_of_run(context_of("manual", {"window": "2023-12"}), "month", whole) == parse_key("month", "2023-12")


@pytest.mark.parametrize("key", ["2024-13", "2024-1", "last month", "2024-01-01", "../../etc/passwd", "2024-02 "])
@pytest.mark.parametrize("way", ["param", "conf", "partition"])
def test_garbage_is_no_window(key: str, way: str, source: str) -> None:
    context = {
        "param": context_of("manual", {"window": key}),
        "conf": context_of("manual", conf={"window": key}),
        "partition": context_of("manual", partition_key=key),
    }[way]
    with pytest.raises(DataNotFoundError, match=r"is not a window of one month; allowed: a key such as 2013-03"):
        window_of_run(context, "month", source)


def test_no_window_has_arrived_yet(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="has arrived yet"):
        window_of_run(context_of("manual"), "month", f"{tmp_path}/data/{{window}}.parquet")


def test_a_window_survives_xcom() -> None:
    window = window_at("hour", TICK)
    assert window_from([window.start.isoformat(), window.end.isoformat(), window.key], "hour") == window
    assert window_from(list(window), "hour") == window
    assert window_from(window.key, "hour") == window
    assert window_from(None, "hour") is None
    assert window_from("", "hour") is None


@pytest.mark.parametrize(
    ("run_type", "dates", "key"),
    [
        ("scheduled", {"logical_date": TICK, "data_interval": (TICK, TICK)}, "2024-02"),
        ("scheduled", {"logical_date": FEBRUARY, "data_interval": (FEBRUARY, TICK)}, "2024-02"),
        ("backfill", {"logical_date": MID_FEBRUARY, "data_interval": (MID_FEBRUARY, MID_FEBRUARY)}, "2024-01"),
        ("manual", {}, "2024-03"),
        ("asset_materialization", {}, "2024-03"),
    ],
)
def test_airflow_tells_a_task_what_the_window_needs(
    champion: Airflow, run_type: str, dates: dict[str, Any], key: str
) -> None:
    run = champion.run("predict", run_type, **dates)

    assert run.state == "success"
    assert run.xcom["start", "return_value"]["window"][2] == key
    assert run.xcom["batch_predict", "return_value"]["outputs"]["predictions"]["uri"].endswith(
        f"/predictions/{champion.name}/window={key}/predictions.parquet"
    )


PARTITIONED = """
from airflow.sdk import DAG, CronPartitionTimetable
from airflow_mlops.operators import ExtractDataOperator
with DAG("partitioned", schedule=CronPartitionTimetable("@monthly", timezone="UTC")) as dag:
    ExtractDataOperator(task_id="extract", source="data/{window}.parquet", grain="month")
"""


def test_a_partitioned_run_reads_its_partition(airflow: Airflow) -> None:
    toy.months(airflow.folder, ("2024-01", "2024-02"), 50)
    airflow.write(PARTITIONED)

    run = airflow.run("partitioned", "scheduled", partition_key="2024-01")

    assert run.state == "success"
    assert run.xcom["extract", "return_value"]["window"][2] == "2024-01"


@pytest.mark.parametrize(
    ("query", "time", "settle", "key"),
    [
        ("SELECT * FROM t", "at", timedelta(0), "2024-02"),
        ("SELECT * FROM t", "at", timedelta(days=1), "2024-01"),
        ("SELECT * FROM t WHERE at < :end", None, timedelta(0), "2024-02"),
        ("SELECT * FROM t", None, timedelta(0), None),
    ],
)
def test_a_run_by_hand_of_a_database_is_about_the_newest_window_that_had_settled(
    query: str, time: str | None, settle: timedelta, key: str | None
) -> None:
    database = SqlSource(connection="w", query=query)
    window = window_of_run(context_of("manual", **NO_DATES), "month", database, time=time, settle=settle)
    assert (window.key if window else None) == key
