"""A window of a pipeline's source held against its data schema, before anything is trained on it."""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

from airflow_mlops.call.connection import connection_of
from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.cli.run import choose_window
from airflow_mlops.cli.where import choose_declaration
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import Declaration, train_plan
from airflow_mlops.spec.data_schema import load_schema
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Extract

_ORDER = ("stop", "quarantine", "warn", "not_judged")


def check_schema(options: argparse.Namespace) -> int:
    """Print what is wrong with a window, the worst first; 1 where a run would stop."""
    declaration = choose_declaration(options.file, options.pipeline)
    where, result = _judged(declaration, options.window)
    print(f"{result.rows:,} rows{where}")
    found = [each for each in result.checked if each.verdict != "ok"]
    for each in sorted(found, key=lambda each: _ORDER.index(each.verdict)):
        print(f"{each.verdict.replace('_', ' ')}: {each.said or each.rule}")
    return int(any(each.verdict == "stop" for each in found))


def _judged(declaration: Declaration, key: str | None) -> tuple[str, Any]:
    data = declaration.pipeline.data
    if data.schema_file is None:
        raise DeclarationError([declaration.problem(("data",), "no data schema is declared", fix="data.schema: FILE")])
    schema = load_schema(os.path.join(declaration.base, data.schema_file))
    window = choose_window(declaration, key)
    node = train_plan(declaration.pipeline)[0]
    params: Extract = node.params.model_copy(update={"last": 1}).resolved(declaration.base)  # type: ignore[assignment]
    about: dict[str, Any] = {"target": data.target, "time": data.time, "window": window}
    where, source = f" of {window.key}" if window else "", params.source
    if isinstance(source, SqlSource) and connection_of(source.connection).type == stage_module("database").BIGQUERY:
        database = stage_module("bigquery").BigQuery(connection_of(source.connection))
        return where, stage_module("bigquery_rules").validate(database, source, schema, **about)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        file = store.fetch(stage_module("extract").extract(params, window, store))
        return where, stage_module("validate_data").validate(file, schema, **about)
