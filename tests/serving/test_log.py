"""The log of served predictions: what comes is written by windows, and nothing that comes stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Store
from airflow_mlops.serving import log as logs
from airflow_mlops.serving.log import Place, PredictionLog, together
from airflow_mlops.stages.batch_predict import read_predictions

NOW = datetime(2024, 3, 5, 12, 30, tzinfo=UTC)


def place(folder: Path, **more: Any) -> Place:
    settings = {"grain": "day", "time": "at", "writer": "s-1", **more}
    return Place(store=Store(str(folder / "store")), folder=str(folder / "predictions"), **settings)


def rows(count: int = 1, **columns: Any) -> pa.Table:
    return pa.table(
        {name: pa.array([value] * count) for name, value in columns.items()}
        | {"prediction": pa.array([1] * count), "answered_at": pa.array([NOW] * count, pa.timestamp("us", "UTC"))}
    )


def written(folder: Path, key: str) -> pa.Table:
    return pa.concat_tables(read_predictions(str(folder / "predictions"), key), promote_options="permissive")


def wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_rows_go_to_the_window_of_their_own_time_else_of_their_answer(tmp_path: Path) -> None:
    log = PredictionLog(place(tmp_path), 60)
    log.take(rows(2, at=datetime(2024, 3, 1, 23, 59, 59)))
    log.take(rows(3, at=datetime(2024, 3, 2)))
    log.take(rows(4))
    log.take(rows(1, at=None))
    log.close()
    assert log.stands().logged == 10
    assert [written(tmp_path, f"2024-03-0{day}").num_rows for day in (1, 2, 5)] == [2, 3, 5]
    assert written(tmp_path, "2024-03-05")["window"].to_pylist() == ["2024-03-05"] * 5


def test_a_time_at_the_end_of_the_calendar_stops_nothing(tmp_path: Path) -> None:
    log = PredictionLog(place(tmp_path, grain="year"), 0.05)
    log.take(rows(1, at=datetime(9999, 12, 31)))
    wait(lambda: log.stands().logged == 1)
    log.take(rows(1))
    log.close()
    assert written(tmp_path, "2024").num_rows == 1
    assert log.stands().problem is None


def test_keys_of_two_kinds_are_kept_as_texts(tmp_path: Path) -> None:
    log = PredictionLog(place(tmp_path), 0.05)
    log.take(rows(1, id=7))
    wait(lambda: log.stands().logged == 1)
    log.take(rows(1, id="x"))
    log.take(rows(1, id=None))
    log.close()
    assert log.stands() == logs.Logged(logged=3)
    assert written(tmp_path, "2024-03-05")["id"].to_pylist() == ["7", "x", None]


def test_what_cannot_be_logged_is_counted_and_what_comes_after_it_is_logged(tmp_path: Path) -> None:
    log = PredictionLog(place(tmp_path), 0.05)
    log.take(rows(2, id=[1]))
    wait(lambda: log.stands().logged == 2)
    log.take(rows(1, id=3))  # a list and a number make no texts
    log.take(rows(1, id={"a": 1}))
    wait(lambda: log.stands().dropped == 2)
    assert "cannot be logged" in str(log.stands().problem)
    log.take(rows(5, id=[2]))
    log.close()
    assert log.stands() == logs.Logged(logged=7, dropped=2)


def test_beyond_the_bound_rows_are_dropped_and_counted_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 100)
    (tmp_path / "predictions").write_text("a file where a folder belongs")
    log = PredictionLog(place(tmp_path), 0.05)
    started = time.perf_counter()
    for _ in range(30):
        log.take(rows(10))
    assert time.perf_counter() - started < 1
    assert (log.stands().queued, log.stands().dropped) == (100, 200)
    wait(lambda: "not logged" in str(log.stands().problem))
    (tmp_path / "predictions").unlink()
    wait(lambda: log.stands().logged == 100)
    log.close()
    assert log.stands() == logs.Logged(logged=100, dropped=200)


def test_a_file_grows_until_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_ROWS", 25)
    log = PredictionLog(place(tmp_path), 0.05)
    for number in range(1, 7):
        log.take(rows(10))
        wait(lambda wanted=10 * number: log.stands().logged == wanted)  # type: ignore[misc]
    log.close()
    files = sorted((tmp_path / "predictions" / "window=2024-03-05").iterdir())
    assert [(file.name, pq.read_metadata(file).num_rows) for file in files] == [
        ("served-s-1-1.parquet", 30),
        ("served-s-1-2.parquet", 30),
    ]


def test_a_file_s_worth_of_rows_is_written_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the time between two writings: many rows must not fill the queue meanwhile, and be dropped."""
    monkeypatch.setattr(logs, "FILE_ROWS", 30)
    monkeypatch.setattr(logs, "MOST_WAITING", 60)
    log = PredictionLog(place(tmp_path), 3600)
    for number in range(1, 11):
        for _ in range(3):
            log.take(rows(10))
        wait(lambda wanted=30 * number: log.stands().logged == wanted)  # type: ignore[misc]
    log.take(rows(10))
    assert log.stands() == logs.Logged(logged=300, queued=10)
    log.close()
    assert written(tmp_path, "2024-03-05").num_rows == 310


def test_tables_of_other_columns_go_together() -> None:
    whole = together([pa.table({"a": [1]}), pa.table({"b": ["x"]}), pa.table({"a": [0.5]})])
    assert whole.to_pylist() == [{"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": 0.5, "b": None}]
