"""Evidently's report: exact scores, a word on every column, and the same size however many rows there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.drift.decide import decide
from airflow_mlops.spec.pipeline import DriftRule
from tests.drift.frames import column_of, evidently, profile_of


@pytest.fixture(scope="module")
def report() -> Any:
    """What is tested. It brings Evidently, so it is loaded when the tests run, and not when they are collected."""
    from airflow_mlops.drift import report

    return report


def rows(count: int, seed: int, shift: float = 0.0) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "x": random.normal(shift, 1, count),
            "c": np.array(["a", "b", "c"])[random.integers(0, 3, count)],
            "t": pa.array(np.arange(count), pa.timestamp("us")),
            "gone": pa.nulls(count, pa.float64()),
        }
    )


def test_the_report_holds_what_was_decided_of_all_rows(report: Any, tmp_path: Path) -> None:
    reference, current = profile_of(rows(5_000, 0)), profile_of(rows(5_000, 1, shift=0.5).drop_columns(["t"]))
    decision = decide(reference, current, DriftRule())
    sizes = []
    for name, sides in (("small", (reference, current)), ("large", (reference, current.merge(current)))):
        file = tmp_path / f"{name}.html"
        report.write_html(*sides, decision, file)
        sizes.append(file.stat().st_size)
        text = file.read_text()
        for column in decision.columns:
            assert json.dumps(column.note)[1:-1] in text
        effect = next(column.effect for column in decision.columns if column.column == "x")
        assert f"Drift score: {round(effect or 0, 3)}" in text
        assert "drift: 1 of 2 columns" in text and "What Evidently's preset would say" in text
    assert abs(sizes[0] - sizes[1]) < 20_000


@pytest.mark.parametrize("seed", range(3))
def test_what_the_preset_would_say_is_what_it_says(report: Any, seed: int) -> None:
    from evidently import Report
    from evidently.presets import DataDriftPreset

    random = np.random.default_rng(seed)
    shift, count = np.linspace(0, 0.25, 6), 3_000
    tables = [
        pa.table(
            {
                **{f"n{at}": random.normal(by * moved, 1, count) for at, by in enumerate(shift)},
                **{
                    f"few{at}": random.binomial(3, 0.3 + by * moved, count).astype(float) for at, by in enumerate(shift)
                },
                **{f"c{at}": random.binomial(9, 0.3 + by * moved, count).astype(str) for at, by in enumerate(shift)},
            }
        )
        for moved in (0, 1)
    ]
    found = Report([DataDriftPreset()]).run(*(each.to_pandas() for each in tables[::-1])).dict()["metrics"][1:]
    theirs = {each["config"]["column"]: each["value"] >= each["config"]["threshold"] for each in found}
    sides = [profile_of(each) for each in tables]
    ours = {name: report.preset_flags(sides[0].columns[name], sides[1].columns[name]) for name in theirs}
    assert ours == theirs and set(theirs.values()) == {True, False}
    small = [profile_of(each.slice(0, 1_000)) for each in tables]
    assert report.preset_flags(small[0].columns["n0"], small[1].columns["n0"]) is None


def test_nothing_to_draw_is_a_report_as_well(report: Any, tmp_path: Path) -> None:
    table = pa.table({"t": pa.array(range(300), pa.timestamp("us")), "l": [[1]] * 300})
    profile = profile_of(table)
    report.write_html(profile, profile, decide(profile, profile, DriftRule()), tmp_path / "r.html")
    assert "time moves on by itself" in (tmp_path / "r.html").read_text()


def test_rows_that_stand_for_a_column_have_its_distances(report: Any) -> None:
    random = np.random.default_rng(2)
    one, other = random.gamma(2, 3, 40_000), random.gamma(2.2, 3, 40_000)
    pair = column_of(one), column_of(other)
    drawn = evidently("wasserstein", *(report.rows_of(each) for each in pair))
    assert drawn == pytest.approx(evidently("wasserstein", one, other), abs=2e-3)
    shares = report.rows_of(column_of(["a"] * 700 + ["b"] * 290 + ["c"] * 10)).value_counts()
    assert shares.to_dict() == {"a": 1400, "b": 580, "c": 20} and shares.sum() == report.ROWS
    many = report.rows_of(column_of([f"v{each % 500}" for each in range(5_000)]))
    assert many.nunique() == 31 and len(many) == report.ROWS
