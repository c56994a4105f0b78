"""The decision: no alarm without drift, an alarm with it, and one word for every column."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.decide import ColumnDrift, Decision, Past
from airflow_mlops.drift.decide import decide as decide_profiles
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.drift.reference import with_blocks
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.pipeline import DataDrift
from tests import toy

WATCHED = ["amount", "age", "region", "member"]
WORDS = {"moved", "steady", "broken", "not_judged"}


def profiled(table: pa.Table, time: str | None = None) -> DatasetProfile:
    made = profile_batches(table.to_batches(), table.schema, (), time)
    return with_blocks(made, lambda names: table.select(names).to_batches())


def decide(reference: pa.Table, current: pa.Table, rule: DataDrift, *more: Any) -> Decision:
    return decide_profiles(profiled(reference), profiled(current), rule, *more)


def window(count: int = 1000, seed: int = 0, **options: Any) -> pa.Table:
    return toy.rows("2024-01", count, seed=seed, **options).select(WATCHED)


def words(decision: Decision) -> dict[str, str]:
    return {column.column: column.word for column in decision.columns}


def column_of(decision: Decision, name: str) -> ColumnDrift:
    return next(column for column in decision.columns if column.column == name)


def one(reference: Any, current: Any, **rule: Any) -> ColumnDrift:
    """The word on a single column, beside one that does not move."""
    steady = np.linspace(0, 1, len(reference)), np.linspace(0, 1, len(current))
    tables = [pa.table({"x": values, "s": other}) for values, other in zip((reference, current), steady, strict=True)]
    return column_of(decide(*tables, DataDrift(**rule)), "x")


def test_identical_rows_have_not_moved() -> None:
    decision = decide(window(), window(), DataDrift())
    assert (decision.status, decision.reasons) == ("ok", ("no column moved: 4 columns unchanged",))
    assert words(decision) == dict.fromkeys(WATCHED, "steady")
    assert all(column.effect == 0 and column.chance == 1 for column in decision.columns)
    assert decision.null.startswith("rows taken as independent")


def test_other_rows_of_the_same_kind_rarely_alarm() -> None:
    found = [decide(window(1000, 0), window(400, seed), DataDrift()).status for seed in range(1, 16)]
    assert found.count("drift") <= 1


@pytest.mark.parametrize("shift", [0.5, -1.0])
def test_numbers_that_shifted_alarm_and_are_named_first(shift: float) -> None:
    decision = decide(window(), window(seed=1, shift=shift), DataDrift())
    assert decision.status == "drift"
    assert words(decision) == {**dict.fromkeys(WATCHED, "steady"), "amount": "moved"}
    assert decision.reasons[0].startswith(f"amount moved by {abs(shift):.1f}"[:-1])
    assert decision.reasons[-1] == "3 columns unchanged"


def test_a_spread_that_grew_alarms_though_the_mean_stayed() -> None:
    random = np.random.default_rng(0)
    assert one(random.normal(size=1000), random.normal(scale=2, size=1000)).word == "moved"


def test_categories_that_changed_places_alarm() -> None:
    found = one(["a"] * 700 + ["b"] * 300, ["a"] * 300 + ["b"] * 700)
    assert found.word == "moved" and found.kind == "category"
    assert "('a' went from 70.0% to 30.0%)" in found.note or "('b' went from 30.0% to 70.0%)" in found.note


def test_a_new_category_alarms() -> None:
    found = one(["a", "b"] * 500, ["a", "b"] * 400 + ["c"] * 200)
    assert found.word == "moved" and "('c' went from 0.0% to 20.0%)" in found.note


def test_nulls_that_came_alarm_whatever_the_values_say() -> None:
    found = one([1.0, 2.0] * 500, [1.0, None, 2.0, None] * 250)
    assert (found.word, found.null_share, found.method) == ("moved", (0.0, 0.5), "nulls")
    assert found.note.startswith("x: nulls went from 0.0% to 50.0%, ")
    assert one(["a", None] * 500, ["a", "a"] * 500).word == "moved"


def test_a_column_that_became_empty_moved() -> None:
    assert one([1.0, 2.0] * 500, pa.nulls(1000)).word == "moved"
    assert one(["a"] * 1000, pa.nulls(1000, pa.string())).word == "moved"


def test_a_small_move_of_many_rows_does_not_matter() -> None:
    random = np.random.default_rng(0)
    rows = 20_000
    found = one(random.normal(size=rows), random.normal(0.05, size=rows))
    assert found.chance is not None and found.chance < 1e-2
    assert (found.word, found.note) == ("steady", f"x: {found.effect:.2f}, below 0.1, though more than chance gives")
    assert one(random.normal(size=rows), random.normal(0.05, size=rows), min_effect=0.02).word == "moved"


def test_a_large_move_of_few_rows_may_be_chance() -> None:
    random = np.random.default_rng(3)
    found = one(random.normal(size=40), random.normal(0.3, size=40), min_rows=20)
    assert found.effect is not None and found.effect > 0.1
    assert (found.word, found.note) == ("steady", f"x: {found.effect:.2f}, within chance")


@pytest.mark.parametrize(("reference", "current"), [(199, 1000), (1000, 199)])
def test_too_few_rows_decide_nothing(reference: int, current: int) -> None:
    decision = decide(window(reference), window(current, shift=3), DataDrift())
    assert (decision.status, decision.columns, decision.alarm) == ("insufficient_data", (), False)
    assert decision.reasons == (f"{current} rows against {reference} of the reference; at least 200 each are needed",)


def test_only_the_columns_declared_are_judged() -> None:
    decision = decide(window(), window(shift=2), DataDrift(columns=("age", "region")))
    assert decision.status == "ok" and list(words(decision)) == ["age", "region"]


def test_a_column_that_is_gone_or_of_another_type_is_broken_and_not_moved() -> None:
    decision = decide(window(), window().drop_columns(["age"]), DataDrift())
    assert (
        decision.status == "drift"
        and decision.alarm
        and decision.reasons[0] == "age is missing, and the reference has it"
    )
    assert words(decision) == {**dict.fromkeys(WATCHED, "steady"), "age": "broken"}
    for values in (["1"] * 300, [True] * 300, [datetime(2024, 1, 1)] * 300):
        assert one(list(range(300)), values).word == "broken"
    with pytest.raises(SchemaError, match="the reference has no column 'colour'"):
        decide(window(), window(), DataDrift(columns=("colour",)))


def test_a_column_that_is_new_is_named_and_decides_nothing() -> None:
    more = window().append_column("extra", pa.array(range(1000)))
    decision = decide(window(), more, DataDrift())
    assert decision.status == "ok" and words(decision)["extra"] == "not_judged"
    assert decision.reasons[0].endswith("1 not judged (new: extra)")


def test_numbers_are_numbers_of_any_width() -> None:
    values = np.arange(500) % 90
    for kind in ("int8", "uint16", "float32", "int64"):
        assert one(values.astype("float64"), pa.array(values.astype(kind))).word == "steady"


def test_what_is_no_number_and_no_category_is_not_judged_and_says_why() -> None:
    found = one([datetime(2024, 1, 1)] * 300, [datetime(2025, 1, 1)] * 300)
    assert (found.word, found.kind) == ("not_judged", "time")
    assert "holds timestamp[us]" in found.note
    assert one([date(2024, 1, 1)] * 300, [date(2025, 1, 1)] * 300).word == "not_judged"


def test_a_column_that_was_always_empty_is_not_judged() -> None:
    assert one(pa.nulls(300, pa.float64()), pa.nulls(300, pa.float64())).word == "not_judged"
    assert one(pa.nulls(300), pa.nulls(300)).word == "not_judged"


def test_constants_are_steady_until_they_change() -> None:
    assert one([5.0] * 300, [5.0] * 300).word == "steady"
    assert one([5.0] * 300, [6.0] * 300).word == "moved"
    assert one(["a"] * 300, ["a"] * 300).word == "steady"
    assert one([True] * 300, [True] * 300).word == "steady"


CELLS = {
    "number": st.none() | st.floats(width=32) | st.just(0.0),
    "whole": st.none() | st.integers(-(2**40), 2**40),
    "text": st.none() | st.text(max_size=2),
    "flag": st.none() | st.booleans(),
    "time": st.none() | st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2050, 1, 1)),
}
KINDS = [pa.float64(), pa.int64(), pa.string(), pa.bool_(), pa.timestamp("us")]
SCHEMA = pa.schema(list(zip(CELLS, KINDS, strict=True)))
ROWS = st.lists(st.fixed_dictionaries(CELLS), min_size=20, max_size=30)


@settings(max_examples=12)
@given(ROWS, ROWS)
def test_whatever_the_rows_each_column_gets_one_word_and_the_status_follows(
    reference: list[dict[str, Any]], current: list[dict[str, Any]]
) -> None:
    tables = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in (reference, current)]
    decision = decide(*tables, DataDrift(min_rows=20))
    assert [column.column for column in decision.columns] == list(CELLS)
    assert all(column.word in WORDS and column.note for column in decision.columns)
    moved = [column for column in decision.columns if column.word == "moved"]
    assert decision.status == ("drift" if moved else "ok")
    assert all(column.effect is None or math.isfinite(column.effect) for column in decision.columns)


@settings(max_examples=8)
@given(ROWS)
def test_no_rows_have_moved_from_themselves(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert decide(table, table, DataDrift(min_rows=20)).status == "ok"


DAY = timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)


def past(days_ago: int, *moved: str, lasts: int = 1) -> Past:
    return Past(START - days_ago * DAY, START - (days_ago - lasts) * DAY, moved)


def judged(history: list[Past], lasts: int = 1, **rule: Any) -> str:
    span = START, START + lasts * DAY
    return decide(window(), window(seed=1, shift=1.0), DataDrift(**rule), history, span).status


def test_a_short_window_needs_another_one_that_says_the_same_of_the_same_column() -> None:
    assert judged([]) == "warn"
    assert judged([past(1, "amount")]) == "drift"
    assert judged([past(1, "age")]) == "warn", "another column"
    assert judged([past(1), past(2, "amount")]) == "warn", "not in a row"
    assert judged([past(2, "amount", lasts=3)]) == "warn", "they share two days"
    assert judged([past(2, "amount")]) == "drift", "a day without a verdict stands for nothing"
    assert judged([past(4, "amount")]) == "warn", "too long ago"


def test_a_window_of_a_week_is_drift_by_itself_unless_declared_otherwise() -> None:
    assert judged([], lasts=7) == "drift"
    assert judged([], lasts=7, consecutive=2) == "warn"
    assert judged([], consecutive=1) == "drift"


def test_k_of_n_windows() -> None:
    rule = {"consecutive": 2, "within": 3}
    assert judged([past(1), past(2, "amount")], **rule) == "drift"
    assert judged([past(1), past(2), past(3, "amount")], **rule) == "warn"
    with pytest.raises(ValueError, match="'within' must be at least 'consecutive'"):
        DataDrift(consecutive=3, within=2)


def test_an_unconfirmed_alarm_says_what_is_missing() -> None:
    decision = decide(window(), window(seed=1, shift=1.0), DataDrift(), [], (START, START + DAY))
    assert decision.reasons[-1] == "1 of the 2 windows in a row that make it drift" and decision.alarm


def days(count: int, seed: int, *, spread: float, rows: int = 60, first: datetime = START) -> pa.Table:
    """Rows of days whose means lie ``spread`` apart."""
    random = np.random.default_rng(seed)
    means = np.repeat(random.normal(scale=spread, size=count), rows)
    times = [first + (index // rows) * DAY + (index % rows) * DAY / rows for index in range(count * rows)]
    return pa.table({"x": means + random.normal(size=count * rows), "at": pa.array(times, pa.timestamp("us", "UTC"))})


def test_days_that_differ_alarm_where_rows_are_taken_as_independent_and_not_where_days_are_known() -> None:
    rule = DataDrift(min_effect=0.0, min_category_effect=0.0)
    alarms = {"days": 0, "independent": 0}
    for seed in range(12):
        reference, current = days(60, seed, spread=1.5), days(4, 100 + seed, spread=1.5, first=START + 60 * DAY)
        current_profile = profiled(current, "at")
        alarms["days"] += decide_profiles(profiled(reference, "at"), current_profile, rule).alarm
        alarms["independent"] += decide_profiles(profiled(reference), current_profile, rule).alarm
    assert alarms["independent"] >= 10 and alarms["days"] <= 1


def test_the_same_profiles_always_give_the_same_decision() -> None:
    sides = profiled(days(40, 1, spread=0.3), "at"), profiled(days(7, 2, spread=0.3), "at")
    again = DatasetProfile.from_bytes(sides[0].to_bytes())
    assert decide_profiles(*sides, DataDrift()) == decide_profiles(again, sides[1], DataDrift())


def test_moved_columns_are_named_with_how_many_times_chance() -> None:
    decision = decide(window(), window(seed=1, shift=1.0), DataDrift())
    (moved, rest) = decision.reasons
    assert "standard deviations, " in moved and "times what chance gives (mean " in moved
    assert rest == "3 columns unchanged"
    found = column_of(decision, "amount")
    assert found.times is not None and found.times > 5 and found.chance is not None and found.chance < 1e-6
