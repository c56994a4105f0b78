"""A window of a pipeline's source held against its data schema, before anything is trained on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from airflow_mlops.call.connection import connection_of
from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.cli.run import choose_window
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import Declaration, train_plan
from airflow_mlops.spec.data_schema import load_schema
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Extract


def check(declaration: Declaration, window: str | None) -> Iterator[str]:
    """Lines for what was found, the worst first. BigQuery judges the rows where they lie; others are read.

    Args:
        declaration: the pipeline.
        window: the window's key. Default: the newest that is there.

    Raises:
        DeclarationError: when the pipeline declares no schema.
        DataError: when the window cannot be had.
    """
    data = declaration.pipeline.data
    if data.schema_file is None:
        raise DeclarationError([declaration.problem(("data",), "no schema is declared", fix="declare data.schema")])
    schema = load_schema(os.path.join(declaration.base, data.schema_file))
    chosen = choose_window(declaration, window)
    params: Extract = (
        train_plan(declaration.pipeline)[0].params.model_copy(update={"last": 1}).resolved(declaration.base)
    )  # type: ignore[assignment]
    about: dict[str, Any] = {"target": data.target, "time": data.time, "window": chosen}
    source = params.source
    if isinstance(source, SqlSource) and connection_of(source.connection).type == stage_module("database").BIGQUERY:
        database = stage_module("bigquery").BigQuery(connection_of(source.connection))
        result = stage_module("bigquery_rules").validate(database, source, schema, **about)
        database.close()
    else:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            file = store.fetch(stage_module("extract").extract(params, chosen, store))
            result = stage_module("validate_data").validate(file, schema, **about)
    yield f"{result.rows:,} rows{f' of {chosen.key}' if chosen else ''}"
    order = ("stop", "quarantine", "warn", "not_judged")
    for each in sorted(result.checked, key=lambda each: order.index(each.verdict) if each.verdict in order else 9):
        if each.verdict != "ok":
            yield f"{each.verdict.replace('_', ' ')}: {each.said or each.rule}"
