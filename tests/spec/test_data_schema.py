"""The data schema file: strict to read, and reviewable when written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import DataSchema, dump_schema, load_schema
from tests.spec.generated import BREAKS, MISREAD, schemas


def load(folder: Path, text: str) -> DataSchema:
    file = folder / "schema.yaml"
    file.write_text(text, encoding="utf-8")
    return load_schema(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemas)
def test_a_written_schema_reads_back_equal(tmp_path: Path, schema: DataSchema) -> None:
    again = load(tmp_path, dump_schema(schema))
    assert repr(again) == repr(schema)


@pytest.mark.parametrize("name", [*MISREAD, *BREAKS, "many words " * 20])
def test_any_text_names_a_column_on_one_line(tmp_path: Path, name: str) -> None:
    schema = DataSchema.model_validate({"columns": {name: {"type": "string", "categories": [name]}}})
    text = dump_schema(schema)
    assert text.count("\n") == 3
    assert load(tmp_path, text) == schema


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemas)
def test_a_written_schema_has_one_line_for_a_column(tmp_path: Path, schema: DataSchema) -> None:
    text = dump_schema(schema)
    lines = text.split("\n")
    assert len(lines[lines.index("columns:") + 1 : -1] if schema.columns else []) == len(schema.columns)


def test_a_column_may_build_on_another(tmp_path: Path) -> None:
    schema = load(tmp_path, "columns:\n  a: &n {type: number, min: 0, max: 1}\n  b: {<<: *n, max: 2}\n  c: *n\n")
    assert [(column.min, column.max) for column in schema.columns.values()] == [(0, 1), (0, 2), (0, 1)]


def test_mistakes_are_told_by_line_and_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError) as caught:
        load(tmp_path, "columns:\n  age: {type: intger}\n  sex: {type: string, categorys: [f, m]}\nmin_rows: 0\n")
    assert [problem.partition("schema.yaml:")[2] for problem in caught.value.problems] == [
        "2: columns.age.type is 'intger'; allowed: 'integer', 'number', 'boolean', 'string', 'timestamp' or 'date'; "
        "try: integer",
        "3: unknown key 'categorys'; allowed: type, required, max_null_fraction, min, max, categories, allow_inf, "
        "on_violation; try: categories",
        "4: min_rows is 0: input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(("text", "count"), [("", 0), ("columns: {}\n---\ncolumns: {}\n", 2)])
def test_a_file_holds_one_schema(tmp_path: Path, text: str, count: int) -> None:
    with pytest.raises(DeclarationError, match=f"holds {count} YAML documents; allowed: one schema"):
        load(tmp_path, text)
