"""All columns together: what no column shows by itself, and no alarm where nothing moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.stages.domain import told_apart

START = datetime(2024, 1, 1, tzinfo=UTC)


def rows(days: int, seed: int, *, together: float = 0.8, spread: float = 0.0, each: int = 60) -> pa.Table:
    """Two numbers that go together, a category, and days that differ."""
    random = np.random.default_rng(seed)
    count = days * each
    normal = random.normal(size=(2, count))
    other = together * normal[0] + np.sqrt(1 - together**2) * normal[1]
    day = np.repeat(random.normal(scale=spread, size=days), each)
    at = [START + timedelta(days=index // each, minutes=index % each) for index in range(count)]
    colour = pa.array(random.choice(["red", "green", None], count))
    return pa.table({"x": normal[0] + day, "y": other, "colour": colour, "at": pa.array(at, pa.timestamp("us", "UTC"))})


@pytest.mark.parametrize("time", ["at", None])
def test_columns_that_no_longer_go_together_are_seen_though_each_is_as_it_was(time: str | None) -> None:
    found = told_apart(rows(60, 0), rows(30, 1, together=-0.8), ["x", "y", "colour"], time, 0.005)
    assert found.word == "moved" and found.effect is not None and found.effect > 0.7
    assert found.note.startswith("all columns together: a classifier tells rows from the reference's with an AUC of 0.")


def test_days_that_differ_do_not_alarm() -> None:
    pairs = [(rows(40, 2 * seed, spread=1.0), rows(20, 2 * seed + 1, spread=1.0)) for seed in range(15)]
    alarms = [told_apart(*pair, ["x", "y"], "at", 0.01).word for pair in pairs].count("moved")
    assert alarms <= 1


def test_too_few_blocks_are_not_judged() -> None:
    found = told_apart(rows(40, 0), rows(1, 1), ["x", "y"], "at", 0.01)
    assert (found.word, found.effect) == ("not_judged", None)


def test_the_same_rows_give_the_same_word() -> None:
    one, other = (told_apart(rows(40, 0), rows(20, 1), ["x", "y", "colour"], "at", 0.01) for _ in range(2))
    assert one == other
