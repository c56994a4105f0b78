"""Data validation: rows are held against the reviewed schema. Hard rules stop the run, soft ones warn.

Computed on Arrow columns; neither pandas nor scikit-learn is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, Verdict
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.data_schema import Column, ColumnType, DataSchema, Severity
from airflow_mlops.spec.stages import ValidateData
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import canonical, read_table

_MAX_CATEGORIES = 50
_SHOWN = 5


class Finding(NamedTuple):
    """One rule that the rows break."""

    severity: Severity
    column: str | None
    what: str


def run(call: Call, params: ValidateData, store: Store) -> Outcome:
    """Check the rows; output ``report``, a JSON of every column and every finding.

    Raises:
        SchemaError: when a hard rule is broken; it names all of them.
    """
    table = read_table(call.input("data"), store)
    schema = params.data_schema if isinstance(params.data_schema, DataSchema) else None
    findings = list(check(table, schema, target=params.target, time=params.time))
    report = store.put_json(
        {
            "rows": table.num_rows,
            "columns": {name: describe(table[name]) for name in table.column_names},
            "findings": [finding._asdict() for finding in findings],
        },
        "report",
    )
    hard = [finding.what for finding in findings if finding.severity == "stop"]
    if hard:
        raise SchemaError(
            "; ".join(hard), fix="mend the data at its source, or review the schema (airflow-mlops schema infer)"
        )
    soft = tuple(finding.what for finding in findings)
    return outcome_of(
        call,
        outputs={"report": report},
        metrics={"warnings": float(len(soft))},
        verdict=Verdict(status="warn" if soft else "ok", reasons=soft),
    )


def type_of(kind: pa.DataType) -> ColumnType | None:
    """The schema's word for an Arrow type, or None where it has none."""
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_string(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return "date" if pa.types.is_date(kind) else None


def check(
    table: pa.Table, schema: DataSchema | None, *, target: str | None = None, time: str | None = None
) -> Iterator[Finding]:
    """Find every rule that the rows break; without a schema only target, time and infinities are looked at."""
    names = table.column_names
    if target is not None:
        if target not in names:
            yield Finding("stop", target, f"the target {target!r} is missing; there are {', '.join(names)}")
        elif nulls := _nulls(table[target]):
            yield Finding("stop", target, f"the target {target!r} has {nulls} nulls")
    if time is not None and (time not in names or type_of(table[time].type) not in ("timestamp", "date")):
        found = f"holds {table[time].type}" if time in names else "is missing"
        yield Finding("stop", time, f"the time column {time!r} {found}")
    if schema is None:
        for name in names:
            yield from _check_infinities(name, table[name])
        return
    if table.num_rows < schema.min_rows:
        yield Finding("stop", None, f"{table.num_rows} rows are fewer than the {schema.min_rows} the schema asks for")
    for name, column in schema.columns.items():
        if name in names:
            yield from _check_column(name, table[name], column)
        elif column.required and name != target:
            yield Finding("stop", name, f"the column {name!r} is missing")
    if schema.extra_columns != "allow":
        for name in names:
            if name not in schema.columns:
                yield Finding(schema.extra_columns, name, f"the column {name!r} is not in the schema")


def _check_column(name: str, values: pa.ChunkedArray, column: Column) -> Iterator[Finding]:
    found = type_of(values.type)
    if values.null_count == len(values) and pa.types.is_null(values.type):
        found = column.type
    if found != column.type and not (found == "integer" and column.type == "number"):
        yield Finding("stop", name, f"the column {name!r} holds {values.type}, not {column.type}")
        return
    nulls = _nulls(values)
    if nulls > column.max_null_fraction * len(values):
        share = nulls / len(values)
        yield Finding(
            "stop", name, f"{share:.2%} of the column {name!r} are nulls; at most {column.max_null_fraction:.2%} may be"
        )
    if not column.allow_inf:
        yield from _check_infinities(name, values)
    if found in ("integer", "number"):
        low, high = _bounds(values)
        if column.min is not None and low is not None and low < column.min:
            yield Finding(column.on_violation, name, f"the column {name!r} goes down to {low:g}, below {column.min:g}")
        if column.max is not None and high is not None and high > column.max:
            yield Finding(column.on_violation, name, f"the column {name!r} goes up to {high:g}, above {column.max:g}")
    if column.categories is not None:
        there = set(pc.unique(values.drop_null()).to_pylist())
        other = sorted(map(str, there - set(column.categories)))
        if other:
            shown = ", ".join(other[:_SHOWN]) + (f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else "")
            yield Finding(column.on_violation, name, f"the column {name!r} has new categories: {shown}")


def _check_infinities(name: str, values: pa.ChunkedArray) -> Iterator[Finding]:
    if pa.types.is_floating(values.type):
        count = pc.sum(pc.is_inf(values)).as_py() or 0
        if count:
            yield Finding("stop", name, f"the column {name!r} has {count} infinite values")


def _nulls(values: pa.ChunkedArray) -> int:
    """Nulls and NaN together: to a model they are the same."""
    count = values.null_count
    if pa.types.is_floating(values.type):
        count += pc.sum(pc.is_nan(values)).as_py() or 0
    return int(count)


def _bounds(values: pa.ChunkedArray) -> tuple[float | None, float | None]:
    """The least and greatest finite value, or None where there is none."""
    if pa.types.is_floating(values.type):
        values = values.filter(pc.is_finite(values))
    bounds = pc.min_max(values).as_py()
    return tuple(None if bounds[end] is None else float(bounds[end]) for end in ("min", "max"))  # type: ignore[return-value]


def describe(values: pa.ChunkedArray) -> dict[str, Any]:
    """A column in a few plain numbers, for the report."""
    kind = type_of(values.type)
    facts: dict[str, Any] = {"type": str(values.type), "nulls": _nulls(values)}
    if kind in ("integer", "number"):
        facts["min"], facts["max"] = _bounds(values)
    elif kind == "string":
        facts["distinct"] = pc.count_distinct(values).as_py()
    elif kind in ("timestamp", "date"):
        bounds = pc.min_max(values).as_py()
        facts["min"], facts["max"] = (str(bounds[end]) if bounds[end] is not None else None for end in ("min", "max"))
    return facts


def infer(table: pa.Table) -> DataSchema:
    """Propose a schema from rows, for a person to review.

    Ranges are those seen; a share of nulls may double; texts with at most 50 values are taken for categories.

    Raises:
        SchemaError: when a column has a type that the schema has no word for.
    """
    table = table.cast(canonical(table.schema))
    columns = {}
    for name in table.column_names:
        values = table[name]
        kind = type_of(values.type)
        if kind is None:
            raise SchemaError(
                f"the column {name!r} holds {values.type}",
                allowed="integers, numbers, booleans, texts, timestamps, dates",
                fix="leave it out, or spread it over plain columns",
            )
        rules: dict[str, Any] = {"type": kind}
        share = _nulls(values) / max(1, len(values))
        if share < 1:
            rules["max_null_fraction"] = min(1.0, math.ceil(200 * share) / 100)
        if kind in ("integer", "number"):
            low, high = _bounds(values)
            rules.update({end: bound for end, bound in (("min", low), ("max", high)) if bound is not None})
        if kind == "string":
            distinct = sorted(pc.unique(values.drop_null()).to_pylist())
            if len(distinct) <= min(_MAX_CATEGORIES, max(1, len(values) // 2)):
                rules["categories"] = tuple(distinct)
        columns[name] = Column(**rules)
    return DataSchema(columns=columns)
