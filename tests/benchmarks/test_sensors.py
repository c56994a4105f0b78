"""The benchmark of sensors that wait, without the Airflow that it starts: what waits in it, and what a look costs."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.triggers.window import arrived
from benchmarks import sensors


def test_all_of_the_crowd_wait_until_their_own_data_comes(tmp_path: Path) -> None:
    waiting = [each["arguments"] for each in sensors.crowd(tmp_path, 6)]
    assert [arrived(arguments) for arguments in waiting] == [None] * 6
    file = tmp_path / "data" / "model-0003" / "2024-02.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    found = [arrived(arguments) for arguments in waiting]
    assert [window and window.key for window in found] == [None, None, None, "2024-02", None, None]
