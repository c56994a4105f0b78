"""A window of BigQuery held against the data schema where it lies: one statement, of which one row comes back.

It counts what the pass over rows counts, rule by rule. Functions of the team's own code, and what is compared with the
champion, are not judged here, and the result says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from airflow_mlops.spec.data_schema import CheckRule, DataSchema
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.bigquery import BigQuery
from airflow_mlops.stages.bigquery_statement import Field, quoted, windowed
from airflow_mlops.stages.column_facts import ColumnFacts
from airflow_mlops.stages.row_rules import SHOWN, RowRule, RowRules, short
from airflow_mlops.stages.tables import type_of
from airflow_mlops.stages.validate_data import Checked, Result, check_columns, check_share, check_whole, judged


def validate(
    database: BigQuery,
    source: SqlSource,
    schema: DataSchema,
    *,
    target: str | None = None,
    time: str | None = None,
    window: Window | None = None,
) -> Result:
    """Hold a window against a schema; no row of it is read.

    Of rows with one key BigQuery takes any for the first.

    Args:
        database: where it is.
        source: what is validated.
        schema: the reviewed schema.
        target: the column to predict.
        time: the column that says when a row happened.
        window: which of its rows; None takes all.

    Raises:
        DataError: when it would process more than ``max_bytes``, or BigQuery refuses it.
        SchemaError: when a column is of a type that no model can use.
        SourceUnreachableError: when BigQuery does not answer.
    """
    fields = database.fields(source, window)
    arrow = pa.schema([(field.name, field.arrow) for field in fields])
    functions = [check.title for check in schema.checks if check.function]
    compared = tuple(check for check in schema.checks if not check.function)
    rules = RowRules(schema.model_copy(update={"checks": compared}), arrow, target)
    breaks = [_broken(rule, compared, arrow) for rule in rules.rules]
    asked = [*_facts(fields), *_counts(rules.rules, breaks)]
    plain = windowed(source, fields, time, window)
    columns = ",\n  ".join(f"{what} AS {name}" for name, what in asked)
    text = (
        f"WITH rows_of_window AS (\n{plain.text}\n),\n"  # noqa: S608
        f"keyed AS (SELECT *, {_repeats(rules.rules)} AS _repeats FROM rows_of_window),\n"
        f"judged AS (SELECT *, {_aside(rules.rules, breaks)} AS _aside FROM keyed)\n"
        f"SELECT\n  {columns}\nFROM judged"
    )
    statement = database.dry(replace(plain, text=text))
    database.allow([statement])
    found = database.rows(database.start(statement), statement)
    said = pa.concat_tables(found.tables()).to_pylist()[0]
    return _result(said, rules, functions, schema, arrow, target, time, window)


def _repeats(rules: Sequence[RowRule]) -> str:
    """Whether a row has the key of another one that is taken for the first."""
    rule = next((rule for rule in rules if rule.kind == "unique"), None)
    if rule is None:
        return "FALSE"
    key = ", ".join(quoted(name) for name in rule.columns)
    return f"ROW_NUMBER() OVER (PARTITION BY TO_JSON_STRING(STRUCT({key}))) > 1"


def _aside(rules: Sequence[RowRule], breaks: Sequence[str]) -> str:
    """Whether a row breaks a rule that sets it aside."""
    broken = (broken for rule, broken in zip(rules, breaks, strict=True) if rule.severity == "quarantine")
    return " OR ".join(f"IFNULL({each}, FALSE)" for each in broken) or "FALSE"


def _facts(fields: Sequence[Field]) -> Iterator[tuple[str, str]]:
    """What is asked of the rows that go on."""
    yield "total", "COUNT(*)"
    yield "aside", "COUNTIF(_aside)"
    for number, field in enumerate(fields):
        name, word = quoted(field.name), type_of(field.arrow)
        floats = pa.types.is_floating(field.arrow)
        left_out = f"_aside OR IS_NAN({name}) OR IS_INF({name})" if floats else "_aside"
        yield f"missing_{number}", f"COUNTIF(NOT _aside AND ({_missing(name, field.arrow)}))"
        if floats:
            yield f"infinite_{number}", f"COUNTIF(NOT _aside AND IS_INF({name}))"
        if word in ("integer", "number", "timestamp", "date"):
            yield f"low_{number}", f"MIN(IF({left_out}, NULL, {name}))"
            yield f"high_{number}", f"MAX(IF({left_out}, NULL, {name}))"


def _counts(rules: Sequence[RowRule], breaks: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, (rule, broken) in enumerate(zip(rules, breaks, strict=True)):
        yield f"broken_{number}", f"COUNTIF({broken})"
        if rule.kind in ("min", "max"):
            name = quoted(rule.columns[0])
            yield f"worst_{number}", f"CAST({rule.kind.upper()}(IF({broken}, {name}, NULL)) AS FLOAT64)"
        if rule.kind == "categories":
            word = f"CAST({quoted(rule.columns[0])} AS STRING)"
            yield f"values_{number}", f"STRING_AGG(DISTINCT IF({broken}, {word}, NULL), '\\x1f' LIMIT {SHOWN + 1})"


def _broken(rule: RowRule, checks: Sequence[CheckRule], arrow: pa.Schema) -> str:
    """The condition that a row meets which breaks a rule; NULL where it is not judged."""
    if rule.kind == "unique":
        return "_repeats"
    if rule.kind == "check":
        check = next(each for each in checks if each.title == rule.rule)
        left, right = (_comparable(str(name), arrow) for name in (check.left, check.right))
        return f"NOT ({left} {check.op} {right})"
    name = quoted(rule.columns[0])
    kind = arrow.field(rule.columns[0]).type
    if rule.kind in ("nulls", "target"):
        return _missing(name, kind)
    if rule.kind == "infinite":
        return f"IS_INF({name})"
    if rule.kind == "categories":
        return f"{name} NOT IN ({', '.join(map(_literal, rule.limit))})"
    sign = "<" if rule.kind == "min" else ">"
    finite = f"NOT (IS_NAN({name}) OR IS_INF({name})) AND " if pa.types.is_floating(kind) else ""
    return f"{finite}{name} {sign} {_literal(rule.limit)}"


def _missing(name: str, kind: pa.DataType) -> str:
    return f"{name} IS NULL OR IS_NAN({name})" if pa.types.is_floating(kind) else f"{name} IS NULL"


def _comparable(name: str, arrow: pa.Schema) -> str:
    """A side of a comparison: NaN is no value."""
    kind = arrow.field(name).type
    if pa.types.is_floating(kind):
        return f"IF(IS_NAN({quoted(name)}), NULL, {quoted(name)})"
    return quoted(name)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        return repr(value)
    written = str(value).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{written}'"


def _result(
    said: dict[str, Any],
    rules: RowRules,
    functions: Sequence[str],
    schema: DataSchema,
    arrow: pa.Schema,
    target: str | None,
    time: str | None,
    window: Window | None,
) -> Result:
    total = said["total"]
    facts = {}
    for number, field in enumerate(arrow):
        facts[field.name] = fact = ColumnFacts(field.type)
        fact.rows, fact.nulls, fact.infinite = total, said[f"missing_{number}"], said.get(f"infinite_{number}", 0)
        fact.low, fact.high = said.get(f"low_{number}"), said.get(f"high_{number}")
    for number, rule in enumerate(rules.rules):
        rule.broken, rule.worst = said[f"broken_{number}"], said.get(f"worst_{number}")
        words = (said.get(f"values_{number}") or "").split("\x1f")
        if rule.kind == "categories" and pa.types.is_boolean(arrow.field(rule.columns[0]).type):
            words = [word.capitalize() for word in words]
        rule.values = dict.fromkeys(map(short, words))
    found = list(check_columns(arrow, schema, target, time))
    found += [judged(rule, total) for rule in rules.rules]
    found += [Checked(title, "not_judged") for title in (*rules.unjudged, *functions)]
    if schema.needs_champion:
        found.append(Checked("what is compared with the champion", "not_judged"))
    gone = said["aside"] if schema.quarantine else 0
    if schema.quarantine is not None:
        found.append(check_share(gone, total, schema.quarantine.max_share))
    found += check_whole(facts, schema, total - gone, target, window)
    columns = {name: {k: v for k, v in fact.facts().items() if k != "distinct"} for name, fact in facts.items()}
    return Result(total, total - gone, found, columns, None, None)
