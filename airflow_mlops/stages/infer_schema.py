"""A data schema proposed from rows, for a person to review."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.data_schema import Column, DataSchema, Freshness
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.column_facts import ColumnFacts
from airflow_mlops.stages.tables import canonical, type_of
from airflow_mlops.stages.validate_data import instant

_MAX_CATEGORIES = 50


def infer(
    table: pa.Table, *, key: Sequence[str] = (), time: str | None = None, window: Window | None = None
) -> DataSchema:
    """Propose a schema from rows.

    Ranges are those seen; a share of nulls may double; texts with at most 50 values are taken for categories. A key
    that no two rows share is proposed as ``unique``, and twice the age of the newest row, in whole days, as the
    freshness.

    Args:
        table: the rows.
        key: the columns that identify a row.
        time: the column that says when a row happened.
        window: the window that the rows are of.

    Raises:
        SchemaError: when a column has a type that the schema has no word for.
    """
    table = table.cast(canonical(table.schema))
    columns, newest = {}, None
    for name in table.column_names:
        values = table[name]
        facts = ColumnFacts(values.type)
        for chunk in values.chunks:
            facts.add(chunk)
        kind = type_of(values.type)
        if kind is None:
            raise SchemaError(
                f"the column {name!r} holds {values.type}",
                allowed="integers, numbers, booleans, texts, timestamps, dates",
                fix="leave it out, or spread it over plain columns",
            )
        rules: dict[str, Any] = {"type": kind}
        share = facts.nulls / max(1, len(values))
        if share < 1:
            rules["max_null_fraction"] = min(1.0, math.ceil(200 * share) / 100)
        if kind in ("integer", "number"):
            bounds = ("min", facts.low), ("max", facts.high)
            rules.update({end: float(bound) for end, bound in bounds if bound is not None})
        if kind == "string":
            distinct = sorted(pc.unique(values.drop_null()).to_pylist())
            if len(distinct) <= min(_MAX_CATEGORIES, max(1, len(values) // 2)):
                rules["categories"] = tuple(distinct)
        if name == time and kind in ("timestamp", "date"):
            newest = instant(facts.high)
        columns[name] = Column(**rules)
    freshness = None
    if time is not None and newest is not None and window is not None and newest <= window.end:
        days = max(1, math.ceil(2 * (window.end - newest) / timedelta(days=1)))
        freshness = Freshness(column=time, within=timedelta(days=days))
    return DataSchema(columns=columns, unique=_unique(table, key), freshness=freshness)


def _unique(table: pa.Table, key: Sequence[str]) -> tuple[str, ...]:
    """The key, if all its columns are there and no two rows share it."""
    if not key or not set(key) <= set(table.column_names):
        return ()
    groups = table.group_by(list(key)).aggregate([([], "count_all")])
    return tuple(key) if groups.num_rows == table.num_rows else ()
