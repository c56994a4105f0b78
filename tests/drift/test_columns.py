"""Every column gets a word, whatever it holds on either side."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.drift.columns import fact, facts, kind_of, merged_kind
from airflow_mlops.drift.profile import ColumnProfile
from tests.drift.frames import column_of, profile_of

N = 300
NUMBERS = [float(each % 7) for each in range(N)]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        *((kind, "number") for kind in (pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal256(40, 2))),
        *((kind, "category") for kind in (pa.bool_(), pa.string(), pa.large_string(), pa.string_view())),
        (pa.dictionary(pa.int8(), pa.string()), "category"),
        (pa.dictionary(pa.int8(), pa.int64()), "number"),
        (pa.run_end_encoded(pa.int32(), pa.float32()), "number"),
        *((kind, "time") for kind in (pa.date32(), pa.date64(), pa.timestamp("ns", "Asia/Tokyo"))),
        *((kind, "other") for kind in (pa.list_(pa.int8()), pa.struct([]), pa.binary())),
        (pa.duration("s"), "other"),
        (pa.null(), "null"),
    ],
    ids=str,
)  # fmt: skip
def test_every_type_has_a_kind(kind: pa.DataType, wanted: str) -> None:
    assert kind_of(kind) == wanted


@pytest.mark.parametrize(
    ("reference", "current", "status", "note"),
    [
        (NUMBERS, NUMBERS, "comparable", ""),
        (NUMBERS, pa.array(NUMBERS).cast(pa.int8()), "comparable", ""),
        ([Decimal("1.5")] * N, NUMBERS, "comparable", ""),
        ([5.0] * N, [5.0] * N, "comparable", ""),
        (NUMBERS, None, "missing", "is missing, and the reference has it"),
        (None, NUMBERS, "new", "is new: the reference does not have it"),
        (NUMBERS, [None] * N, "emptied", "has no value any more"),
        (NUMBERS, [float("nan")] * N, "emptied", "has no value any more"),
        ([None] * N, NUMBERS, "empty", "has no value in the reference"),
        ([None] * N, [None] * N, "empty", "has no value in the reference"),
        (NUMBERS, ["1"] * N, "type_changed", "holds string, and double in the reference"),
        (NUMBERS, [True] * N, "type_changed", "holds bool, and double in the reference"),
        ([date(2024, 1, 1)] * N, NUMBERS, "type_changed", "holds double, and date32[day] in the reference"),
        ([date(2024, 1, 1)] * N, [datetime(2024, 1, 2)] * N, "time", "holds date32[day]: time moves on by itself"),
        ([f"k{each}" for each in range(N)], [f"m{each}" for each in range(N)], "identifier", "looks like an"),
        (list(range(N)), list(range(N, 2 * N)), "identifier", "looks like an identifier"),
        ([[1]] * N, [[1]] * N, "unsupported", "holds list<item: int64>, which is not compared"),
    ],
)  # fmt: skip
def test_the_word_on_a_pair(reference: Any, current: Any, status: str, note: str) -> None:
    one, other = (None if each is None else column_of(each) for each in (reference, current))
    found = fact("x", one, other)
    assert found.status == status and found.note.startswith(note) and bool(found.note) == (status != "comparable")
    assert found.broken == (status in ("missing", "type_changed"))


def test_columns_of_other_kinds_in_other_files_and_names_that_stand_twice() -> None:
    mixed = column_of([1, 2]).merge(column_of(["a"]))
    assert (mixed.kind, mixed.type, mixed.rows) == ("mixed", "int64 | string", 3)
    assert mixed.merge(column_of([1])).kind == "mixed"
    found = fact("x", column_of([1, 2]), mixed)
    assert (found.status, found.note) == ("mixed", "holds int64 | string in different files of the data")
    twice = profile_of(pa.table([[1], [2]], names=["x", "x"])).columns["x"]
    assert fact("x", twice, column_of([1])).note == "stands twice in the reference"
    assert merged_kind("null", "time") == "time" and merged_kind("twice", "number") == "twice"


def test_every_column_of_either_side_has_one_fact_in_order() -> None:
    reference = profile_of(pa.table({"b": [1], "a": ["x"]}))
    current = profile_of(pa.table({"c": [1], "b": [2]}))
    assert [(each.name, each.status) for each in facts(reference, current)] == [
        ("b", "comparable"), ("a", "missing"), ("c", "new"),
    ]  # fmt: skip
    assert [each.status for each in facts(reference, current, ("z", "b"))] == ["missing", "comparable"]


def test_an_unread_column_knows_its_rows() -> None:
    column = profile_of(pa.table({"v": [[1.0]] * 5})).columns["v"]
    assert (column.rows, column.kind) == (5, "other") and column == ColumnProfile("v", "other", column.type, rows=5)
    assert np.isfinite(column.std)
