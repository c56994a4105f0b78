"""Profiles that BigQuery computes: those of the pass over the same rows, bin for bin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_mlops.call.connection import connection_of
from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.stages.bigquery import BigQuery
from airflow_mlops.stages.bigquery_profile import profile
from tests import toy


def both(bigquery: Any, rows: pa.Table, time: str | None = None, window: Any = None) -> tuple[Any, Any]:
    bigquery.load("shop.t", rows)
    database = BigQuery(connection_of("lake"))
    there = profile(database, SqlSource(connection="lake", table="shop.t"), time, window)
    database.close()
    return there, profile_batches(rows.to_batches(), rows.schema, time=time)


def same(there: DatasetProfile, here: DatasetProfile) -> None:
    assert (there.rows, list(there.columns), there.time) == (here.rows, list(here.columns), here.time)
    for name, column in there.columns.items():
        other = here.columns[name]
        told = ("kind", "type", "rows", "nulls", "nans", "infinite", "min", "max", "counts", "error")
        for field in told:
            assert getattr(column, field) == getattr(other, field), (name, field)
        assert column.bins.level == other.bins.level, name
        np.testing.assert_array_equal(column.bins.index, other.bins.index)
        np.testing.assert_array_equal(column.bins.count, other.bins.count)
        # Of 1e9 + N(0, 1) the pass over Arrow rounds its sums by 8e-5 of a bin; BigQuery averages places in bins.
        np.testing.assert_allclose(column.bins.place, other.bins.place, atol=2e-4)
        assert column.looked.rows == other.looked.rows
        assert column.looked.distinct == other.looked.distinct
        if np.isfinite(other.std):
            assert column.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-12 * other.std)
            assert column.std == pytest.approx(other.std, rel=1e-7)


def test_a_window_of_every_kind(bigquery: Any) -> None:
    random = np.random.default_rng(1)
    count = 20_000
    ats = np.sort(random.integers(0, 28 * 86_400, count)) + np.datetime64("2024-02-01").astype("int64") * 86_400
    words = random.choice(["east", "north", "é" * 200, "x" * 121, "x" * 120], count).tolist()
    rows = pa.table(
        {
            "id": [f"{index:06}" for index in range(count)],
            "at": pa.array(ats * 1_000_000, pa.timestamp("us")),
            "normal": random.normal(size=count),
            "offset": 1e9 + random.normal(size=count),
            "skewed": random.lognormal(0, 3, count),
            "few": random.choice([0.0, -0.0, 0.1, -7.5], count),
            "signed": random.normal(size=count) * 10.0 ** random.integers(-300, 300, count),
            "whole": random.integers(-5, 5, count),
            "counter": np.arange(count),
            "huge": random.integers(-(2**63), 2**63 - 1, count),
            "word": pa.array(words).take(
                pa.array(np.where(random.random(count) < 0.1, None, np.arange(count)), pa.int64())
            ),
            "flag": random.random(count) < 0.5,
            "day": pa.array(ats * 1_000_000, pa.timestamp("us")).cast(pa.date32(), safe=False),
            "nothing": pa.nulls(count, pa.float64()),
        }
    )
    there, here = both(bigquery, rows.drop_columns(["id"]), "at", toy.month("2024-02"))
    same(there, here)
    assert there.columns["counter"].identifier
    assert len(bigquery.statements) == 1


ODD = [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1.7976931348623157e308]
ODD += [float("inf"), float("-inf"), float("nan"), None, 2.0**-1022 - 5e-324, 1e22, 0.1]
POWERS = [np.nextafter(2.0**e, 2.0**e * d) for e in range(-1021, 1023, 7) for d in (0, 1, 2)]


def test_powers_of_two_and_their_neighbours(bigquery: Any) -> None:
    same(*both(bigquery, pa.table({"x": [*ODD, *POWERS], "y": [*ODD, *(-each for each in POWERS)]})))


def test_values_over_all_octaves(bigquery: Any) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**64, 30_000, dtype=np.uint64).view(np.float64)
    same(*both(bigquery, pa.table({"x": bits[np.abs(bits) < 1e300]})))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(width=64), st.sampled_from(ODD)),
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            st.one_of(st.none(), st.text(max_size=130)),
            st.one_of(st.none(), st.booleans()),
        ),
        min_size=1,
        max_size=60,
    )
)
@example([(None, 0, None, None)])
def test_any_rows(bigquery: Any, rows: list[tuple[Any, ...]]) -> None:
    kinds = [pa.float64(), pa.int64(), pa.string(), pa.bool_()]
    columns = zip(*rows, strict=True)
    table = pa.table([pa.array(each, kind) for each, kind in zip(columns, kinds, strict=True)], names=list("xiwb"))
    there, here = both(bigquery, table)
    for name, column in here.columns.items():
        assert there.columns[name].bins == column.bins
        assert dict(there.columns[name].counts) == dict(column.counts)
        assert (there.columns[name].nulls, there.columns[name].nans) == (column.nulls, column.nans)
        assert (there.columns[name].min, there.columns[name].max) == (column.min, column.max)


def test_many_categories_are_counted_with_the_least_error(bigquery: Any) -> None:
    random = np.random.default_rng(2)
    words = [f"w{int(each)}" for each in random.exponential(600, 30_000)]
    there, here = both(bigquery, pa.table({"w": words}))
    assert (there.columns["w"].counts, there.columns["w"].error) == (here.columns["w"].counts, here.columns["w"].error)
    assert there.columns["w"].error


def test_an_empty_window_is_a_profile_of_nothing(bigquery: Any) -> None:
    bigquery.load("shop.t", toy.rows("2024-02", 10))
    database = BigQuery(connection_of("lake"))
    there = profile(database, SqlSource(connection="lake", table="shop.t"), "at", toy.month("2030-01"))
    assert there.rows == 0
    assert there.columns["amount"].valid == 0
    assert there.time_range is None
