"""Row hashes: equal rows are equal wherever they stand, and other rows are others."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.stages.rows import row_hashes
from airflow_mlops.stages.tables import to_frame

CELLS = {
    "b": st.booleans(),
    "d": st.dates(min_value=date(1970, 1, 1)),
    "i": st.integers(-(2**40), 2**40),
    "s": st.text(max_size=3),
    "t": st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)),
    "x": st.floats(allow_nan=False, allow_infinity=False),
}
KINDS = {
    "b": pa.bool_(),
    "d": pa.date32(),
    "i": pa.int64(),
    "s": pa.string(),
    "t": pa.timestamp("us"),
    "x": pa.float64(),
}
ROW = st.fixed_dictionaries({name: st.none() | cell for name, cell in CELLS.items()})
ROWS = st.lists(ROW, min_size=1, max_size=8)
Row = dict[str, Any]


def table_of(rows: list[Row], names: list[str] | None = None) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, KINDS[name]) for name in names or KINDS]))


def hashes(rows: list[Row], names: list[str] | None = None, seed: int = 0) -> list[int]:
    return [int(value) for value in row_hashes(to_frame(table_of(rows, names)), seed)]


@given(ROWS, ROWS)
def test_a_row_has_its_hash_whatever_stands_beside_it(rows: list[Row], others: list[Row]) -> None:
    alone = [hashes([row])[0] for row in rows]
    assert hashes([*others, *rows])[len(others) :] == alone


@given(ROWS, st.permutations(list(KINDS)))
def test_the_order_of_columns_does_not_matter(rows: list[Row], order: list[str]) -> None:
    assert hashes(rows, order) == hashes(rows)


@given(ROWS)
def test_a_row_has_its_hash_when_its_columns_have_another_type(rows: list[Row]) -> None:
    """As when the null of another window turns whole numbers into broken ones, or a column is empty in one window."""
    table = table_of(rows)
    wide = table.set_column(2, "i", table["i"].cast(pa.float64()))
    wide = wide.set_column(4, "t", wide["t"].cast(pa.timestamp("ns")))
    for index, name in enumerate(wide.column_names):
        if wide[name].null_count == len(wide):
            wide = wide.set_column(index, name, pa.nulls(len(wide)))
    assert list(row_hashes(to_frame(wide))) == hashes(rows)


@given(ROW, ROW)
def test_rows_have_equal_hashes_exactly_when_they_are_equal(one: Row, other: Row) -> None:
    assert (hashes([one]) == hashes([other])) == (one == other)


@given(ROW, st.sampled_from(list(KINDS)), st.data())
def test_each_column_counts(row: Row, name: str, data: st.DataObject) -> None:
    other = {**row, name: data.draw(st.none() | CELLS[name])}
    assert (hashes([row]) == hashes([other])) == (row == other)


def test_minus_zero_is_zero_and_nan_is_null() -> None:
    table = pa.table({"x": [0.0, -0.0, float("nan"), None]})
    zero, minus, nan, null = row_hashes(to_frame(table))
    assert zero == minus and nan == null and zero != nan


def test_values_that_change_places_make_another_row() -> None:
    one, other = row_hashes(pd.DataFrame({"a": [1, 2], "b": [2, 1]}))
    assert one != other


def test_hashes_are_spread_evenly_and_a_seed_gives_another_order() -> None:
    frame = pd.DataFrame({"i": np.arange(20_000)})
    for seed in (0, 1, 7):
        shares = np.histogram(row_hashes(frame, seed).astype(float) / 2.0**64, bins=10, range=(0, 1))[0] / len(frame)
        assert np.abs(shares - 0.1).max() < 0.01
    assert np.corrcoef(row_hashes(frame, 0).astype(float), row_hashes(frame, 1).astype(float))[0, 1] < 0.05
    assert len(np.unique(row_hashes(frame))) == len(frame)
