"""Calibration: what is promised of false alarms and of the smallest move holds when it is tried."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.decide import decide
from airflow_mlops.drift.power import calibration
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.spec.pipeline import DataDrift

RULE = DataDrift(min_effect=0.0, min_category_effect=0.0)


def rows(count: int, seed: int, shift: float = 0.0) -> DatasetProfile:
    random = np.random.default_rng(seed)
    table = pa.table({
        "x": random.normal(size=count) + shift,
        "heavy": random.standard_t(3, size=count),
        "colour": pa.array(random.choice(["red", "green", "blue"], count, p=[0.6, 0.3, 0.1])),
    })  # fmt: skip
    return profile_batches(table.to_batches(), table.schema)


def test_the_smallest_move_is_found_and_half_of_it_is_not() -> None:
    made = calibration(rows(10_000, 0), RULE, 1000)
    smallest = {each.column: each.smallest for each in made.columns}
    assert list(smallest) == ["x", "heavy", "colour"]
    assert smallest["x"] is not None and 0.1 < smallest["x"] < 0.3
    found = {
        step: sum(decide(rows(10_000, 2 * seed), rows(1000, 2 * seed + 1, step), RULE).alarm for seed in range(20))
        for step in (smallest["x"] * 1.1, smallest["x"] / 3)
    }
    often, rarely = found.values()
    assert often >= 18 and rarely <= 6


def test_more_rows_find_smaller_moves_until_the_floor_stands_in_the_way() -> None:
    reference = rows(50_000, 0)
    least = [calibration(reference, RULE, count).columns[0].smallest for count in (300, 3000, 30_000)]
    assert None not in least and least == sorted(least, reverse=True)  # type: ignore[type-var]
    floored = calibration(reference, DataDrift(min_effect=0.2), 30_000).columns[0]
    assert (floored.smallest, floored.limited_by) == (0.2, "floor")


def test_false_alarms_are_at_most_the_declared_rate_and_fewer_with_floors() -> None:
    reference = rows(20_000, 0)
    bare = calibration(reference, DataDrift(min_effect=0, min_category_effect=0, false_alarm_rate=0.1), 5000)
    assert 0.05 < bare.false_alarms <= 0.12
    assert calibration(reference, DataDrift(false_alarm_rate=0.1), 5000).false_alarms < 0.01
