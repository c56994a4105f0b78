"""The data schema: what a reviewed table looks like. Hard rules stop a run, soft ones warn.

With ``quarantine`` declared, rows that break a rule about single rows are set aside, and the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import SEVERAL, Callable, Duration, Names, Section
from airflow_mlops.spec.load import Document, read_documents, to_yaml, validate
from airflow_mlops.spec.pipeline import DriftRule

ColumnType = Literal["integer", "number", "boolean", "string", "timestamp", "date"]
Severity = Literal["warn", "stop"]
RowSeverity = Literal["warn", "quarantine", "stop"]


class Column(Section):
    """What one column promises."""

    type: ColumnType
    """The type. An ``integer`` column is accepted where ``number`` is declared; nothing else is converted."""
    required: bool = True
    """Whether the column must be there."""
    max_null_fraction: float = Field(1.0, ge=0, le=1)
    """The largest share of nulls, NaN among them. Breaking it stops the run; ``0`` forbids them, and then the rows that
    have one can be set aside."""
    min: int | float | None = None
    """The least value."""
    max: int | float | None = None
    """The greatest value."""
    categories: tuple[str | int | bool, ...] | None = None
    """The values there may be."""
    allow_inf: bool = False
    """Whether infinite values may pass. Where not, one stops the run (or its row is set aside): no estimator takes
    them."""
    on_violation: RowSeverity | None = None
    """What a value outside ``min``, ``max`` or ``categories`` does. Default: ``quarantine`` where the schema declares
    one, else ``warn``."""


class CheckRule(Section):
    """A rule over several columns: ``left op right``, or a function of the pipeline's own code.

    A row with a null on either side is not judged.
    """

    left: str | None = None
    """The column on the left."""
    op: Literal["<", "<=", ">", ">=", "==", "!="] | None = None
    """How the two compare; in quotes, for some of these mean something to YAML."""
    right: str | None = None
    """The column on the right, of the same kind: two numbers, two times, two texts."""
    function: Callable | None = None
    """``frame -> boolean Series``, true where a row is as it should be. It is called on pieces of the rows, so a row's
    answer must depend on that row alone. Integers and booleans come in pandas' nullable types, dates as timestamps. It
    runs in the worker, with the worker's libraries, also where the pipeline has a ``runtime``."""
    name: str | None = None
    """What the rule is called. Default: the comparison, or the function."""
    on_violation: RowSeverity | None = None
    """What a row that breaks the rule does. Default: ``quarantine`` where the schema declares one, else ``warn``."""

    @model_validator(mode="after")
    def _one_form(self) -> CheckRule:
        compared = [each is not None for each in (self.left, self.op, self.right)]
        if (self.function is not None and any(compared)) or (self.function is None and not all(compared)):
            raise ValueError("give 'left', 'op' and 'right', or 'function'")
        return self

    @property
    def title(self) -> str:
        """What the rule is called."""
        return self.name or self.function or f"{self.left} {self.op} {self.right}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns compared; none for a function, which sees all of them."""
        return tuple(each for each in (self.left, self.right) if each is not None)


class Freshness(Section):
    """How old the newest row may be."""

    column: str
    """The column that says when a row happened."""
    within: Duration
    """How long before the end of the run's window the newest row may lie. A run without a window is not judged."""
    on_violation: Severity = "stop"
    """What older rows do."""


class Volume(Section):
    """How many rows there may be, against those that the champion's training had, each per window."""

    min_ratio: float | None = Field(0.5, ge=0)
    """The least ratio of the two."""
    max_ratio: float | None = Field(2.0, gt=0)
    """The greatest ratio of the two."""
    on_violation: Severity = "stop"
    """What a ratio outside does."""

    @model_validator(mode="after")
    def _ordered(self) -> Volume:
        if self.min_ratio is not None and self.max_ratio is not None and self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio {self.min_ratio:g} is above max_ratio {self.max_ratio:g}")
        return self


class Quarantine(Section):
    """Rows that break a rule about single rows go to a file of their own, with their reasons; the rest goes on."""

    max_share: float = Field(0.01, ge=0, le=1)
    """The largest share of rows that may be set aside; more of them stop the run."""


class Skew(DriftRule):
    """Whether the rows look like those the champion was trained on, by the rule that monitoring judges by.

    Columns that are gone or hold another type stop the run; values that have moved warn. Before the first champion
    there is nothing to compare with, and the verdict says so.
    """

    on_skew: Literal["warn", "retrain"] = "warn"
    """What moved values do: ``warn``, or ``retrain``, which warns and makes a retrain request."""


class DataSchema(Section):
    """The schema of a pipeline's rows, kept beside the declaration and reviewed like code.

    A missing column, another type, too many nulls, too few rows and a repeated key stop the run. Ranges, categories and
    checks of single rows warn, and with a quarantine the rows that break them are set aside.
    """

    api_version: Literal["airflow-mlops/schema/v1"] = Field("airflow-mlops/schema/v1", alias="apiVersion")
    """The version of this format."""
    columns: dict[str, Column]
    """The columns by name."""
    extra_columns: Literal["allow", "warn", "stop"] = "warn"
    """What a column does that the schema does not name."""
    min_rows: int = Field(1, ge=1)
    """Fewer rows stop the run."""
    max_rows: int | None = Field(None, ge=1)
    """More rows stop the run."""
    unique: Names = ()
    """Columns whose values, taken together, no two rows may share. A later row that repeats an earlier one stops the
    run, or is set aside."""
    checks: tuple[CheckRule, ...] = ()
    """Rules over several columns."""
    freshness: Freshness | None = None
    """How old the newest row may be."""
    volume: Volume | None = None
    """How many rows there may be, against the champion's training."""
    skew: Skew | None = None
    """Whether the rows look like those the champion was trained on."""
    quarantine: Quarantine | None = None
    """Sets single bad rows aside, where without it they would stop the run."""

    @model_validator(mode="after")
    def _fits_together(self) -> DataSchema:
        if problems := list(_problems(self)):
            raise PydanticCustomError(
                SEVERAL, "{text}", {"text": "; ".join(what for _, what in problems), "problems": problems}
            )
        return self

    def severity(self, rule: Column | CheckRule) -> RowSeverity:
        """What a row does that breaks a rule."""
        return rule.on_violation or ("quarantine" if self.quarantine else "warn")

    @property
    def hard(self) -> RowSeverity:
        """What a row does that must not go on: infinite values, forbidden nulls, a repeated key."""
        return "quarantine" if self.quarantine else "stop"

    @property
    def needs_champion(self) -> bool:
        """Whether the rows are held against the champion's."""
        return self.skew is not None or self.volume is not None


_KINDS: dict[str, str] = {"integer": "number", "date": "timestamp"}


def _problems(schema: DataSchema) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong between the parts of a schema: where, and what."""
    columns, fresh = schema.columns, schema.freshness
    used: list[tuple[tuple[str | int, ...], str]] = [(("unique",), name) for name in schema.unique]
    used += [(("checks", index), name) for index, check in enumerate(schema.checks) for name in check.columns]
    if fresh is not None:
        used.append((("freshness", "column"), fresh.column))
    for path, name in used:
        if name not in columns:
            yield path, f"there is no column {name!r} in the schema"
    if fresh is not None and fresh.column in columns and columns[fresh.column].type not in ("timestamp", "date"):
        yield ("freshness", "column"), f"the column {fresh.column!r} is a {columns[fresh.column].type}, and no time"
    titles: set[str] = set()
    for index, check in enumerate(schema.checks):
        kinds = {_KINDS.get(columns[name].type, columns[name].type) for name in check.columns if name in columns}
        if len(kinds) > 1:
            yield ("checks", index), f"the rule {check.title!r} compares a {' with a '.join(sorted(kinds))}"
        if check.title in titles:
            yield ("checks", index), f"the rule {check.title!r} stands twice; give one of them a name"
        titles.add(check.title)
    rules: list[tuple[tuple[str | int, ...], Column | CheckRule]] = [
        *((("columns", name), column) for name, column in columns.items()),
        *((("checks", index), check) for index, check in enumerate(schema.checks)),
    ]
    for path, rule in rules:
        if schema.quarantine is None and rule.on_violation == "quarantine":
            yield (*path, "on_violation"), "on_violation is 'quarantine', and the schema declares no quarantine"
    if schema.max_rows is not None and schema.max_rows < schema.min_rows:
        yield ("max_rows",), f"max_rows {schema.max_rows} is below min_rows {schema.min_rows}"


def load_schema(file: str | Path) -> DataSchema:
    """Read a schema file.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    return read_schema(file)[0]


def read_schema(file: str | Path) -> tuple[DataSchema, Document]:
    """Read a schema file, and the document that knows the line of everything in it.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    documents = read_documents(file)
    if len(documents) != 1:
        raise DeclarationError([f"{file}: holds {len(documents)} YAML documents; allowed: one schema"])
    return validate(DataSchema, documents[0]), documents[0]


def dump_schema(schema: DataSchema, hints: Mapping[str, str] | None = None) -> str:
    """Write a schema as YAML, a line for a column; ``hints`` become comments beside the columns."""
    body = schema.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    columns = body.pop("columns")
    lines = ["apiVersion: airflow-mlops/schema/v1"]
    if body:
        lines.append(to_yaml(body).strip())
    lines.append("columns:" if columns else "columns: {}")
    for name, column in columns.items():
        hint = f"  # {hints[name]}" if hints and name in hints else ""
        lines.append(f"  {on_one_line(name)}: {on_one_line(column)}{hint}")
    return "\n".join(lines) + "\n"


def on_one_line(value: Any) -> str:
    """A value as YAML on one line."""
    text = to_yaml([value], default_flow_style=True, width=math.inf).strip()
    if "\n" in text:
        text = to_yaml([value], default_flow_style=True, width=math.inf, default_style='"').strip()
    return text[1:-1]
