"""The predict DAG, run: one partition for each window, by the champion of the day."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.stages.batch_predict import read_predictions
from tests.airflow_fixtures import Airflow

SCHEMA = {
    "id": pa.string(),
    "at": pa.timestamp("us"),
    "prediction": pa.int64(),
    "probability": pa.float64(),
    "model": pa.string(),
    "model_version": pa.string(),
    "run": pa.string(),
    "window": pa.string(),
}
"""What ``docs/howto/predict.md`` promises of the toy pipeline's predictions."""


def test_a_window_becomes_a_partition(champion: Airflow) -> None:
    run = champion.test("predict", "2024-02")

    assert run.state == "success"
    partition = Path(champion.world.store, "predictions", champion.name, "window=2024-02", "predictions.parquet")
    table = pq.read_table(partition, partitioning=None)
    assert table.num_rows == 400
    assert table.column_names[:4] == ["id", "at", "prediction", "probability"]
    assert set(table["model_version"].to_pylist()) == {"1"}
    assert [event["asset"] for event in run.events] == [f"x-mlops://{champion.name}/predictions"]


def test_the_event_says_what_was_written_and_a_reader_finds_it(champion: Airflow) -> None:
    """All that monitoring has is the event: by it the rows are found, and each says whose prediction it is."""
    run = champion.test("predict", "2024-02")
    (event,) = run.events
    destination = str(Path(champion.world.store, "predictions", champion.name))
    assert event["extra"] == {
        "version": "1",
        "run": f"{champion.name}.predict/{run.run_id}",
        "window": "2024-02",
        "rows": 400,
        "uri": f"{destination}/window=2024-02/predictions.parquet",
    }

    rows = pa.concat_tables(read_predictions(destination, event["extra"]["window"]))
    assert dict(zip(rows.schema.names, rows.schema.types, strict=True)) == SCHEMA
    assert rows.num_rows == event["extra"]["rows"]
    for column, told in (("model_version", "version"), ("run", "run"), ("window", "window")):
        assert set(rows[column].to_pylist()) == {event["extra"][told]}
    assert set(rows["model"].to_pylist()) == {champion.name}
    assert set(rows["prediction"].to_pylist()) == {0, 1}
    assert all(0 <= each <= 1 for each in rows["probability"].to_pylist())


def test_a_second_run_writes_the_same_partition_again(champion: Airflow) -> None:
    runs = [champion.test("predict", "2024-03") for _ in range(2)]

    first, second = (run.xcom["batch_predict", "return_value"]["outputs"]["predictions"] for run in runs)
    assert first["uri"] == second["uri"]
    folder = Path(champion.world.store, "predictions", champion.name)
    assert [file.name for file in (folder / "window=2024-03").iterdir()] == ["predictions.parquet"]
    newest = pq.read_table(folder / "window=2024-03" / "predictions.parquet", partitioning=None)
    assert set(newest["run"].to_pylist()) == {f"{champion.name}.predict/{runs[1].run_id}"}
