"""What BigQuery is asked: statements with the types of their columns, and a window as a condition. Nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.source import SqlSource, named
from airflow_mlops.spec.window import Window

TIMES = ("TIMESTAMP", "DATETIME", "DATE")
_ARROW = {
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "NUMERIC": pa.float64(),
    "BIGNUMERIC": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
}
_SYNONYMS = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "RECORD": "STRUCT"}


@dataclass(frozen=True)
class Field:
    """A column of a query, with its type as BigQuery's API writes it."""

    name: str
    type: str

    @property
    def arrow(self) -> pa.DataType:
        """The type that it is read as."""
        return _ARROW[self.type]


@dataclass(frozen=True)
class Statement:
    """A query, its named parameters with their types, and what a dry run said of it."""

    text: str
    parameters: tuple[tuple[str, str, Any], ...] = ()
    fields: tuple[Field, ...] = ()
    bytes: int = 0
    location: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """What its rows are read as."""
        return pa.schema([(field.name, field.arrow) for field in self.fields])


def windowed(
    source: SqlSource,
    fields: Sequence[Field],
    time: str | None,
    window: Window | None,
    instant: datetime | None = None,
) -> Statement:
    """The query that reads one window, with decimals as floats.

    Args:
        source: what is read.
        fields: its columns; see `BigQuery.fields`.
        time: the column that says when a row happened.
        window: the window; None reads all rows.
        instant: as of when a table is read. Default: now.
    """
    casts = [f"CAST({quoted(f.name)} AS FLOAT64) AS {quoted(f.name)}" for f in fields if "NUMERIC" in f.type]
    columns = f"* REPLACE ({', '.join(casts)})" if casts else "*"
    # On lines of its own, so that a comment at the query's end takes nothing with it.
    text = f"SELECT {columns} FROM (\n{select(source, instant)}\n) AS rows_of_source"  # noqa: S608
    parameters = bounds(source, window)
    if time is not None and window is not None:
        kind = next((field.type for field in fields if field.name == time), None)
        if kind not in TIMES:
            holds = f"is of BigQuery's type {kind}" if kind else "is not there"
            raise SchemaError(
                f"the time column {time!r} of {source} {holds}",
                allowed=f"{', '.join(TIMES)}; there are {', '.join(field.name for field in fields)}",
            )
        at = f"rows_of_source.{quoted(time)}"
        text += f" WHERE {at} >= @rows_from AND {at} < @rows_to"
        ends = (("rows_from", window.start), ("rows_to", window.end))
        parameters += tuple((name, kind, _instant(kind, end)) for name, end in ends)
    return Statement(text, parameters)


def quoted(name: str) -> str:
    """A name as an identifier of BigQuery, whatever is in it."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def select(source: SqlSource, instant: datetime | None = None) -> str:
    """The source's own query, or all rows of its table, as of an instant."""
    if source.table is None:
        return named(source.select)
    as_of = f" FOR SYSTEM_TIME AS OF TIMESTAMP '{instant.isoformat(' ')}'" if instant else ""
    return f"SELECT * FROM {quoted(source.table)}{as_of}"  # noqa: S608


def bounds(source: SqlSource, window: Window | None) -> tuple[tuple[str, str, Any], ...]:
    """The window's ends as the parameters that the query names itself."""
    if window is None or not source.names_window:
        return ()
    return ("start", "TIMESTAMP", window.start), ("end", "TIMESTAMP", window.end)


def span(windows: Sequence[Window | None]) -> Window:
    """From the first window's start to the last one's end."""
    each = [window for window in windows if window is not None]
    return each[0]._replace(end=each[-1].end)


def _instant(kind: str, at: datetime) -> datetime | date:
    """An end of a window as a value that compares with a column of that type; naive times and dates are in UTC."""
    if kind == "DATE":
        # A day is an instant at its midnight: within an hour's window it lies only where the hour is its first.
        return (at + timedelta(days=1) - timedelta(microseconds=1)).date()
    return at if kind == "TIMESTAMP" else at.replace(tzinfo=None)


def within(kind: str, time: str, window: Window) -> str:
    """A window as a condition on a time column of that type."""
    first, last = (_instant(kind, end) for end in (window.start, window.end))
    return f"{quoted(time)} >= {kind} '{_text(first)}' AND {quoted(time)} < {kind} '{_text(last)}'"


def _text(value: datetime | date) -> str:
    return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()


def field_of(column: Any, source: SqlSource | None) -> Field:
    """A column as a dry run tells it.

    Raises:
        SchemaError: when no model can use its type; it says how to cast it.
    """
    kind = _SYNONYMS.get(column.field_type, column.field_type)
    if column.mode == "REPEATED":
        kind = "ARRAY"
    if kind not in _ARROW:
        name = quoted(column.name)
        text = f"ST_ASTEXT({name})" if kind == "GEOGRAPHY" else f"TO_JSON_STRING({name})"
        what = f"the column {column.name!r} of {source} is of BigQuery's type {kind}, which no model can use"
        raise SchemaError(what, fix=f"cast it in a query, {text} AS {name} say, or leave it out")
    return Field(column.name, kind)
