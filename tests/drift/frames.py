"""Columns of rows and their profiles, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.profile import ColumnProfile, DatasetProfile


def profile_of(table: pa.Table, pieces: int | None = None, **options: Any) -> DatasetProfile:
    """The profile of a table that comes in batches of so many rows."""
    return profile_batches(table.to_batches(max_chunksize=pieces), table.schema, **options)


def column_of(values: Any, kind: pa.DataType | None = None, pieces: int | None = None) -> ColumnProfile:
    """The profile of one column of values."""
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, kind)
    return profile_of(pa.table({"x": array}), pieces).columns["x"]


def evidently(test: str, one: Any, other: Any, kind: str = "num") -> float:
    """Evidently's own value on the rows."""
    # It is loaded by the process that runs these tests, and not by each that collects them.
    from evidently.legacy.calculations import stattests
    from evidently.legacy.core import ColumnType

    found = getattr(stattests, f"{test}_stat_test")(pd.Series(one), pd.Series(other), ColumnType(kind), None)
    return float(found.drift_score)
