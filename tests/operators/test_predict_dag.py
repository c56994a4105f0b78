"""The predict DAG, run: one partition for each window, by the champion of the day."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tests.airflow_fixtures import Airflow


def test_a_window_becomes_a_partition(champion: Airflow) -> None:
    run = champion.test("predict", "2024-02")

    assert run.state == "success"
    partition = Path(champion.world.store, "predictions", champion.name, "window=2024-02", "predictions.parquet")
    table = pq.read_table(partition, partitioning=None)
    assert table.num_rows == 400
    assert table.column_names[:4] == ["id", "at", "prediction", "probability"]
    assert set(table["model_version"].to_pylist()) == {"1"}
    assert [event["asset"] for event in run.events] == [f"x-mlops://{champion.name}/predictions"]


def test_a_second_run_writes_the_same_partition_again(champion: Airflow) -> None:
    runs = [champion.test("predict", "2024-03") for _ in range(2)]

    first, second = (run.xcom["batch_predict", "return_value"]["outputs"]["predictions"] for run in runs)
    assert first["uri"] == second["uri"]
    folder = Path(champion.world.store, "predictions", champion.name)
    assert [file.name for file in (folder / "window=2024-03").iterdir()] == ["predictions.parquet"]
    newest = pq.read_table(folder / "window=2024-03" / "predictions.parquet", partitioning=None)
    assert set(newest["run"].to_pylist()) == {f"{champion.name}.predict/{runs[1].run_id}"}
