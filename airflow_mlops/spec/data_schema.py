"""The data schema: what a reviewed table looks like. Hard rules stop a run, soft ones warn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.base import Section
from airflow_mlops.spec.load import read_documents, to_yaml, validate

ColumnType = Literal["integer", "number", "boolean", "string", "timestamp", "date"]
Severity = Literal["warn", "stop"]


class Column(Section):
    """What one column promises."""

    type: ColumnType
    """The type. An ``integer`` column is accepted where ``number`` is declared; nothing else is converted."""
    required: bool = True
    """Whether the column must be there."""
    max_null_fraction: float = Field(1.0, ge=0, le=1)
    """The largest share of nulls; ``0`` forbids them. Breaking it stops the run."""
    min: float | None = None
    """The least value."""
    max: float | None = None
    """The greatest value."""
    categories: tuple[str | int | bool, ...] | None = None
    """The values there may be."""
    allow_inf: bool = False
    """Whether infinite values may pass. Where not, one stops the run: no estimator takes them."""
    on_violation: Severity = "warn"
    """What a value outside ``min``, ``max`` or ``categories`` does."""


class DataSchema(Section):
    """The schema of a pipeline's rows, kept beside the declaration and reviewed like code."""

    api_version: Literal["airflow-mlops/schema/v1"] = Field("airflow-mlops/schema/v1", alias="apiVersion")
    """The version of this format."""
    columns: dict[str, Column]
    """The columns by name."""
    extra_columns: Literal["allow", "warn", "stop"] = "warn"
    """What a column does that the schema does not name."""
    min_rows: int = Field(1, ge=1)
    """Fewer rows stop the run."""


def load_schema(file: str | Path) -> DataSchema:
    """Read a schema file.

    Raises:
        DeclarationError: with one line for every mistake.
    """
    documents = read_documents(file)
    if len(documents) != 1:
        raise DeclarationError([f"{file}: holds {len(documents)} YAML documents; allowed: one schema"])
    return validate(DataSchema, documents[0])


def dump_schema(schema: DataSchema) -> str:
    """Write a schema as YAML, a line for a column."""
    body = schema.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    columns = body.pop("columns")
    lines = ["apiVersion: airflow-mlops/schema/v1"]
    if body:
        lines.append(to_yaml(body).strip())
    lines.append("columns:" if columns else "columns: {}")
    for name, column in columns.items():
        lines.append(f"  {_on_one_line(name)}: {_on_one_line(column)}")
    return "\n".join(lines) + "\n"


def _on_one_line(value: Any) -> str:
    text = to_yaml([value], default_flow_style=True, width=math.inf).strip()
    if "\n" in text:
        text = to_yaml([value], default_flow_style=True, width=math.inf, default_style='"').strip()
    return text[1:-1]
