"""The benchmark of sensors that wait, without the Airflow that it starts: what waits in it, and what a look costs."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.triggers.window import arrived
from benchmarks import sensors


def test_all_of_the_crowd_wait_until_their_own_data_comes(tmp_path: Path) -> None:
    made = sensors.crowd(tmp_path, 6)
    assert [arrived(trigger.arguments) for trigger in made] == [None] * 6
    assert {trigger.poll_interval for trigger in made} == {sensors.POLL}
    file = tmp_path / "data" / "model-0003" / "2024-02.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    assert [window and window.key for window in map(arrived, (trigger.arguments for trigger in made))] == [
        *(None, None, None),
        *("2024-02", None, None),
    ]
