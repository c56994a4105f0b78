"""A data schema proposed from rows, for a person to review."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.data_schema import Column, DataSchema, Freshness
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.column_facts import ColumnFacts
from airflow_mlops.stages.tables import canonical, type_of
from airflow_mlops.stages.validate_data import instant

_MAX_CATEGORIES = 50


class Proposal(NamedTuple):
    """A schema for a person to review, and by column what to look at."""

    schema: DataSchema
    hints: dict[str, str]


def infer(
    table: pa.Table,
    *,
    key: Sequence[str] = (),
    time: str | None = None,
    target: str | None = None,
    window: Window | None = None,
) -> Proposal:
    """Propose a schema from rows.

    The least and greatest value of one window are no rule, and the next one would break them: they stand in the hints.
    Only numbers of which none is negative are taken for such, but for key and target. A share of nulls may double, and
    where there is none there may be none. Texts with at most 50 values are taken for categories, and so are the classes
    of a target. A key that no two rows share is proposed as ``unique``, and twice the age of the newest row, in whole
    days, as the freshness.

    Args:
        table: the rows.
        key: the columns that identify a row.
        time: the column that says when a row happened.
        target: the column to predict.
        window: the window that the rows are of.

    Raises:
        SchemaError: when a column has a type that the schema has no word for.
    """
    table = table.cast(canonical(table.schema))
    columns, hints, newest = {}, {}, None
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
            rules["max_null_fraction"] = min(1.0, math.ceil(200 * share) / 100) or 0
        role = "the target" if name == target else f"{'part of ' if len(key) > 1 else ''}the key" if name in key else ""
        known = pc.unique(values.drop_null()) if kind == "string" or (role and kind == "integer") else None
        few = known is not None and len(known) <= min(_MAX_CATEGORIES, max(1, len(values) // 2))
        if known is not None and few and name not in key and (kind == "string" or name == target):
            rules["categories"] = tuple(sorted(known.to_pylist()))
        elif kind in ("integer", "number") and not role and facts.low is not None and facts.low >= 0:
            rules["min"] = 0
        if name == time and kind in ("timestamp", "date"):
            role, newest = "when a row happened", instant(facts.high)
        if hint := "; ".join(each for each in (role, _seen(facts, known, rules)) if each):
            hints[name] = hint
        columns[name] = Column(**rules)
    freshness = None
    if time is not None and newest is not None and window is not None and newest <= window.end:
        days = max(1, math.ceil(2 * (window.end - newest) / timedelta(days=1)))
        freshness = Freshness(column=time, within=timedelta(days=days))
    return Proposal(DataSchema(columns=columns, unique=_unique(table, key), freshness=freshness), hints)


def _seen(facts: ColumnFacts, known: pa.Array | None, rules: dict[str, Any]) -> str:
    """What these rows had, where a person may know a rule for it."""
    if facts.nulls == facts.rows:
        return "nothing but nulls here"
    if "categories" in rules:
        return ""
    if facts.word == "string" and known is not None:
        return "another text in every row" if len(known) == facts.rows > 1 else f"{len(known):,} texts here"
    if facts.low is None or facts.word not in ("integer", "number"):
        return ""
    if facts.low == facts.high:
        return f"nothing but {facts.low:.6g} here"
    low, high = (f"{each:,}" if isinstance(each, int) else f"{each:.6g}" for each in (facts.low, facts.high))
    return f"{low} to {high} here"


def _unique(table: pa.Table, key: Sequence[str]) -> tuple[str, ...]:
    """The key, if all its columns are there and no two rows share it."""
    if not key or not set(key) <= set(table.column_names):
        return ()
    groups = table.group_by(list(key)).aggregate([([], "count_all")])
    return tuple(key) if groups.num_rows == table.num_rows else ()
