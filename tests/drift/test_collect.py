"""Profiles of rows are what pandas and the whole would say, however the rows come, and whatever they hold."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_mlops.drift.collect import count_blocks, profile_batches, profile_files, read_files
from airflow_mlops.drift.profile import MOST_CATEGORIES, DatasetProfile
from airflow_mlops.errors import DataError, SchemaError, StoreError
from tests import toy
from tests.drift.frames import column_of, profile_of


def test_numbers_are_what_pandas_says() -> None:
    values = toy.rows("2024-01")["age"]
    found, wanted = column_of(values), values.to_pandas()
    assert (found.rows, found.nulls, found.valid) == (400, wanted.isna().sum(), wanted.notna().sum())
    assert found.mean == pytest.approx(wanted.mean())
    assert found.std == pytest.approx(wanted.std(ddof=0))
    assert (found.min, found.max) == (wanted.min(), wanted.max())
    assert dict(zip(found.bins.mean, found.bins.count, strict=True)) == wanted.value_counts().to_dict()


def test_many_numbers_in_batches_are_what_numpy_says_of_the_whole() -> None:
    values = 1e6 + np.random.default_rng(0).lognormal(0, 2, 50_000)
    found = column_of(values, pieces=3_000)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(values.std(), rel=1e-9)
    assert found.bins.rows == 50_000


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float32"])
def test_numbers_of_any_width_are_the_same_numbers(kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 120, 5_000)
    wanted = column_of(values.astype(float))
    found = column_of(values.astype(kind))
    assert found.kind == "number" and found.bins == wanted.bins and found.mean == wanted.mean


def test_decimals_and_extreme_integers_are_numbers() -> None:
    found = column_of([Decimal("1.50"), Decimal("-2.25"), None], pa.decimal128(10, 2))
    assert (found.kind, found.nulls, found.min, found.max, found.type) == ("number", 1, -2.25, 1.5, "decimal128(10, 2)")
    ends = [-(2**63), 2**63 - 1]
    assert column_of(ends, pa.int64()).min == -(2.0**63)
    assert column_of([0, 2**64 - 1], pa.uint64()).max == 2.0**64
    assert column_of(list(range(-3000, 3000)) + ends, pa.int64()).bins.rows == 6002


def test_nan_infinity_and_nulls_are_counted_apart_and_spoil_nothing() -> None:
    found = column_of([1.0, np.nan, np.inf, -np.inf, None, 3.0])
    assert (found.nulls, found.nans, found.infinite, found.valid) == (1, 1, 2, 2)
    assert (found.missing, found.mean, found.std, found.min, found.max) == (2, 2.0, 1.0, 1.0, 3.0)
    huge = column_of([1e308] * 4)
    assert (huge.mean, huge.std, huge.constant) == (1e308, 0.0, True)
    spread = column_of([-1.7e308, 1.7e308] * 600 + list(range(1200)))
    assert spread.bins.rows == 2400 and np.isfinite(spread.mean)


@pytest.mark.parametrize("encoded", [False, True])
def test_categories_are_counted_whatever_their_encoding(encoded: bool) -> None:
    values = pa.array(["b", "a", None, "b", "", "ü"] * 50)
    found = column_of(values.dictionary_encode() if encoded else values)
    assert dict(found.counts) == {"b": 100, "": 50, "a": 50, "ü": 50} and next(iter(found.counts)) == "b"
    assert (found.nulls, found.valid, found.rest, found.error, found.type) == (50, 250, 0, 0, "string")
    for kind in (pa.large_string(), pa.string_view()):
        assert column_of(values.cast(kind)) == found
    flags = column_of([True, None, False, True])
    assert (dict(flags.counts), flags.kind, flags.nulls) == ({"true": 2, "false": 1}, "category", 1)


def test_nulls_in_a_dictionary_are_nulls() -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1, 2]), pa.array(["a", None, "c"]))
    found = column_of(values)
    assert (dict(found.counts), found.nulls, found.valid) == ({"a": 1, "c": 1}, 3, 2)


def test_many_categories_keep_their_frequent_ones_within_the_error() -> None:
    random = np.random.default_rng(2)
    codes = np.minimum(random.zipf(1.3, 60_000), 40_000)
    values = pa.array([f"v{code}" for code in codes])
    found = column_of(values, pieces=7_000)
    true = pd.Series(codes).map("v{}".format).value_counts()
    assert len(found.counts) <= MOST_CATEGORIES and 0 < found.error <= 60_000 / (MOST_CATEGORIES + 1)
    for name, count in found.counts.items():
        assert count <= true[name] <= count + found.error
    for name, count in true.head(20).items():
        assert found.counts[name] >= count - found.error
    assert found.rest == 60_000 - sum(found.counts.values())


def test_long_texts_stay_short_and_apart() -> None:
    found = column_of(["x" * 100_000, "x" * 100_000 + "y", "x" * 100_000])
    assert sorted(found.counts.values()) == [1, 2] and all(len(name) <= 120 for name in found.counts)


def test_times_have_a_range_in_any_zone_and_unit() -> None:
    at = [datetime(2024, 1, 1, tzinfo=UTC), None, datetime(2024, 3, 1, 12, tzinfo=UTC)]
    for kind in (pa.timestamp("s", "UTC"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("us", "America/Lima")):
        profile = profile_of(pa.table({"t": pa.array(at, kind)}), time="t")
        assert profile.time_range == (at[0], at[2]) and profile.columns["t"].nulls == 1
    days = profile_of(pa.table({"t": [date(2024, 1, 1), date(1960, 1, 2)]}), time="t")
    assert days.time_range == (datetime(1960, 1, 2, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))
    assert profile_of(pa.table({"t": pa.nulls(3, pa.timestamp("us"))}), time="t").time_range is None
    assert profile_of(pa.table({"x": [1]}), time="t").time_range is None


def test_what_is_not_compared_is_named_and_crashes_nothing() -> None:
    table = pa.table({"l": [[1], [2, 3]], "s": [{"a": 1}, None], "b": [b"x", b"y"], "n": pa.nulls(2), "o": [1, 2]})
    table = table.rename_columns(["l", "s", "b", "n", "o"])
    kinds = {name: column.kind for name, column in profile_of(table).columns.items()}
    assert kinds == {"l": "other", "s": "other", "b": "other", "n": "null", "o": "number"}
    twice = pa.table([[1], ["a"], [2]], names=["x", "x", "0"])
    assert {n: (c.kind, c.type, c.rows) for n, c in profile_of(twice).columns.items()} == {
        "x": ("twice", "int64 | string", 1),
        "0": ("number", "int64", 1),
    }


def test_no_rows_and_one_row() -> None:
    table = toy.rows("2024-01")
    empty = profile_of(table.slice(0, 0))
    assert empty.rows == 0 and all(column.valid == 0 for column in empty.columns.values())
    assert profile_batches([], table.schema) == empty
    one = profile_of(table.slice(0, 1))
    assert one.rows == 1 and one.columns["amount"].constant
    assert empty.merge(one) == one == one.merge(empty)


def write(table: pa.Table, file: Path, **options: Any) -> str:
    pq.write_table(table, file, **options)
    return str(file)


def test_files_are_read_in_batches_and_merged(tmp_path: Path) -> None:
    whole = toy.rows("2024-01", 3_000).drop_columns(["id"])
    files = [
        write(whole.slice(start, 1_000), tmp_path / f"{start}.parquet", row_group_size=300)
        for start in (0, 1_000, 2_000)
    ]
    found, wanted = profile_files(files, time="at"), profile_of(whole, time="at")
    assert found.rows == 3_000 and found.time_range == wanted.time_range
    for name, column in wanted.columns.items():
        other = found.columns[name]
        assert other.counts == column.counts and other.nulls == column.nulls
        assert (other.bins.index == column.bins.index).all() and (other.bins.count == column.bins.count).all()
        assert other.mean == pytest.approx(column.mean) and other.squares == pytest.approx(column.squares)
    assert list(profile_files(files, ["age", "region", "gone"], "at").columns) == ["at", "age", "region"]


def test_files_with_other_columns_are_still_one_dataset(tmp_path: Path) -> None:
    files = [
        write(pa.table({"x": [1, 2], "y": ["a", "b"]}), tmp_path / "1.parquet"),
        write(pa.table({"x": [0.5], "z": [1]}), tmp_path / "2.parquet"),
        write(pa.table({"x": pa.nulls(2), "y": [1, 2]}), tmp_path / "3.parquet"),
    ]
    found = profile_files(files)
    x, y, z = (found.columns[name] for name in "xyz")
    assert (found.rows, x.rows, x.nulls, x.kind, x.type) == (5, 5, 2, "number", "double | int64")
    assert (y.kind, y.type, y.rows) == ("mixed", "int64 | string", 4)
    assert (z.rows, z.kind) == (1, "number")


def test_nested_columns_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"a.b": [1, 2], "a": [{"b": 5}, {"b": 6}], "v": [[1.0] * 9, [2.0]]})
    found = profile_files([write(table, tmp_path / "n.parquet")])
    assert {name: (each.kind, each.rows) for name, each in found.columns.items()} == {
        "a.b": ("number", 2),
        "a": ("other", 2),
        "v": ("other", 2),
    }
    only = profile_files([write(table.select(["v"]), tmp_path / "o.parquet")])
    assert (only.rows, only.columns["v"].rows) == (2, 2)


def test_a_corrupt_file_among_good_ones_is_named(tmp_path: Path) -> None:
    good = write(toy.rows("2024-01"), tmp_path / "1.parquet")
    for name, data in {
        "cut": Path(good).read_bytes()[:-100],
        "other": b"a,b\n1,2\n",
        "empty": b"",
        "spoilt": Path(good).read_bytes()[:4] + b"\xff" * 3000 + Path(good).read_bytes()[3004:],
    }.items():
        bad = tmp_path / f"{name}.parquet"
        bad.write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.parquet cannot be read as Parquet"):
            profile_files([good, str(bad)])
    with pytest.raises(StoreError, match="gone.parquet does not exist"):
        profile_files([good, str(tmp_path / "gone.parquet")])


class Halves:
    size = 3

    def codes(self, values: Any) -> Any:
        return np.where(np.isnan(values), 2, values > 30)


def test_rows_are_counted_by_blocks_of_time(tmp_path: Path) -> None:
    table = pa.table({"t": pa.array([0, 5, 10, 19, 20, None, -1], pa.timestamp("us")), "x": [1, 40, 50, 2, 99, 99, 99]})
    file = write(table, tmp_path / "t.parquet")
    edges = np.array([0, 10, 20])
    found = count_blocks(read_files([file], ["t", "x"]), "t", edges, {"x": Halves()})
    assert found.rows.tolist() == [2, 2] and found.counts["x"].tolist() == [[1, 1, 0], [1, 1, 0]]
    with pytest.raises(SchemaError, match="the time column holds int64"):
        count_blocks([table], "x", edges, {})


def test_identifiers_are_known_by_their_first_rows() -> None:
    rows = 500
    assert column_of(range(1, rows)).identifier
    assert column_of([f"user-{each}" for each in range(rows)]).identifier
    random = np.random.default_rng(4)
    assert column_of(random.integers(2**60, 2**62, rows)).identifier
    assert not column_of(random.permutation(rows)).identifier
    assert not column_of(np.sort(random.normal(size=rows))).identifier
    assert not column_of(["a", "b"] * rows).identifier
    assert not column_of(range(20)).identifier


CELLS = {
    "number": st.none() | st.floats(width=32),
    "text": st.none() | st.text(max_size=2),
    "whole": st.none() | st.integers(-(2**60), 2**60),
}
SCHEMA = pa.schema([("number", pa.float64()), ("text", pa.string()), ("whole", pa.int64())])
TABLES = st.lists(st.fixed_dictionaries(CELLS), max_size=12).map(lambda rows: pa.Table.from_pylist(rows, SCHEMA))


EXACT = ("kind", "type", "rows", "nulls", "nans", "infinite", "min", "max", "counts", "error")


def assert_same(one: DatasetProfile, other: DatasetProfile) -> None:
    """Equal but for the rounding of sums, and for how many first rows of a file were looked at."""
    assert one.rows == other.rows and one.columns.keys() == other.columns.keys()
    for name, column in one.columns.items():
        peer = other.columns[name]
        assert [getattr(column, what) for what in EXACT] == [getattr(peer, what) for what in EXACT]
        assert column.bins.level == peer.bins.level
        assert column.bins.index.tolist() == peer.bins.index.tolist()
        assert column.bins.count.tolist() == peer.bins.count.tolist()
        assert column.bins.mean.tolist() == pytest.approx(peer.bins.mean.tolist())
        tolerance = 1e-9 * max(abs(column.min or 0), abs(column.max or 0))
        assert column.mean == pytest.approx(peer.mean, abs=tolerance)
        assert column.std == pytest.approx(peer.std, abs=tolerance)


@settings(deadline=None)
@given(TABLES, TABLES, TABLES)
def test_merging_is_associative_and_commutative(one: pa.Table, two: pa.Table, three: pa.Table) -> None:
    a, b, c = (profile_of(each) for each in (one, two, three))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    assert a.merge(b).columns["whole"].looked == b.merge(a).columns["whole"].looked


ZEROS = [{"number": 0.0, "text": None, "whole": None}, {"number": -0.0, "text": None, "whole": None}]


@settings(deadline=None)
@example(pa.Table.from_pylist([], SCHEMA), pa.Table.from_pylist(ZEROS, SCHEMA))
@given(TABLES, TABLES)
def test_a_merged_profile_is_that_of_the_rows_together(one: pa.Table, two: pa.Table) -> None:
    assert_same(profile_of(one).merge(profile_of(two)), profile_of(pa.concat_tables([one, two])))
