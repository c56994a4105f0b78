"""The benchmark of waiting sensors runs through with a few of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks import sensors
from benchmarks.table import Table


def test_the_one_whose_data_came_fires_and_no_other(tmp_path: Path) -> None:
    table = Table()
    sensors.measure(table, tmp_path, count=9, poll=0.3)
    assert [row.what.strip() for row in table.rows] == [
        "9 deferred sensors: memory of each",
        "data comes -> its trigger fires",
        "all of them, waiting",
    ]
    assert table.rows[1].met
