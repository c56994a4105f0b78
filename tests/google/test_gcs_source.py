"""Files in a bucket as a pipeline's source: windows, what is new, and waiting for what has not come."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Call, Store
from airflow_mlops.call.cache import INFO
from airflow_mlops.call.dispatch import run
from airflow_mlops.call.source import files_of, fingerprint, stamp_of, windows_of
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages.tables import read_table
from airflow_mlops.triggers import WindowTrigger
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.loopback.gcs import PROJECT


def put(bucket: str, name: str, month: str, count: int = 50, **options: Any) -> None:
    """Let somebody else upload rows: this process's own file system knows nothing of it."""
    import gcsfs

    elsewhere = gcsfs.GCSFileSystem(project=PROJECT, token="anon", skip_instance_cache=True)
    with elsewhere.open(f"{bucket}/raw/{name}", "wb") as file:
        pq.write_table(toy.rows(month, count, **options), file)


@pytest.fixture
def source(gcs: str) -> str:
    """Two months, and what is none."""
    for month in toy.MONTHS[:2]:
        put(gcs, f"{month}.parquet", month)
    put(gcs, "2024-13.parquet", "2024-03")
    put(gcs, "notes-2024-03.parquet", "2024-03")
    return f"{gcs}/raw/{{window}}.parquet"


def extracted(source: str, month: str, store: str, name: str) -> Any:
    params = Extract(source=source, time="at", grain="month")
    given = params.model_dump(mode="json")
    return run(Call(pipeline="toy", stage="extract", run=name, window=toy.month(month), params=given, store=store))


def test_windows_are_the_objects_of_the_bucket_as_they_are_now(source: str, gcs: str) -> None:
    assert [window.key for window in windows_of(source, "month")] == ["2024-01", "2024-02"]
    assert files_of(source, toy.month("2024-02")) == [f"{gcs}/raw/2024-02.parquet"]
    assert files_of(source, toy.month("2024-03")) == []

    put(gcs, "2024-03.parquet", "2024-03")

    assert [window.key for window in windows_of(source, "month")][-1] == "2024-03"
    assert files_of(source, toy.month("2024-03")) == [f"{gcs}/raw/2024-03.parquet"]


def test_a_folder_of_a_window_is_read_whole(gcs: str) -> None:
    put(gcs, "month=2024-01/a.parquet", "2024-01", 10, seed=1)
    put(gcs, "month=2024-01/b.parquet", "2024-01", 20, seed=2)
    put(gcs, "month=2024-01/_temporary/c.parquet", "2024-01", 30)
    outcome = extracted(f"{gcs}/raw/month={{window}}", "2024-01", f"{gcs}/mlops", "r")
    assert outcome.outputs["data"].rows == 30


def test_a_changed_object_is_new_input_and_an_equal_one_is_not(source: str, gcs: str) -> None:
    store, month = f"{gcs}/mlops", toy.month("2024-02")
    before, stamp = fingerprint(source, [month]), stamp_of(source, month)
    first = extracted(source, "2024-02", store, "one")
    put(gcs, "2024-02.parquet", "2024-02")
    assert fingerprint(source, [month]) == before
    again = extracted(source, "2024-02", store, "two")
    assert again.info[INFO].startswith("hit") and again.outputs == first.outputs

    put(gcs, "2024-02.parquet", "2024-02", 60)

    assert fingerprint(source, [month]) != before and stamp_of(source, month) != stamp
    changed = extracted(source, "2024-02", store, "three")
    assert not changed.info[INFO].startswith("hit")
    assert read_table(changed.outputs["data"], Store(store)).num_rows == 60


async def first_event(trigger: WindowTrigger) -> Any:
    async for event in trigger.run():
        return event.payload
    return None


def test_a_trigger_waits_for_the_window_in_the_bucket(source: str, gcs: str) -> None:
    store = Store(f"{gcs}/mlops")
    Ledger(store, "toy").record(
        "promotion", version="1", champion_before=None, reasons=(), run="toy.train/1", window="2024-02"
    )
    arguments = {"store": store.root, "pipeline": "toy", "source": source, "grain": "month", "run": "toy.monitor/1"}

    async def upload_then_fire() -> Any:
        waiting = asyncio.create_task(first_event(WindowTrigger(arguments, 0.2)))
        assert not (await asyncio.wait([waiting], timeout=2))[0], "there is nothing to judge yet"
        await asyncio.to_thread(put, gcs, "2024-03.parquet", "2024-03")
        return await asyncio.wait_for(waiting, 60)

    assert asyncio.run(upload_then_fire()) == {"window": "2024-03"}


def test_a_pipeline_of_a_bucket_trains_on_its_newest_window_and_judges_the_next_one(
    airflow: Airflow, source: str, gcs: str
) -> None:
    for month in toy.MONTHS[:2]:
        put(gcs, f"{month}.parquet", month, 400)
    airflow.declare(data={"source": source}, monitor={"poll": "1s"})

    trained = airflow.test("train")
    assert trained.state == "success", trained.errors
    assert trained.xcom["start", "return_value"]["window"][2] == "2024-02"

    late = threading.Timer(1.5, put, (gcs, "2024-03.parquet", "2024-03", 400))
    late.start()
    judged = airflow.test("monitor")
    late.join()

    assert judged.state == "success", judged.errors
    assert judged.xcom["data_drift", "return_value"]["window"][2] == "2024-03"
