"""A data schema judged by BigQuery finds what the pass over the same rows finds."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.call.connection import connection_of
from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.stages.bigquery import BigQuery
from airflow_mlops.stages.bigquery_rules import validate
from airflow_mlops.stages.validate_data import validate as validate_file
from tests import toy

SCHEMA: dict[str, Any] = {
    "min_rows": 5,
    "max_rows": 10,
    "unique": ["id"],
    "freshness": {"column": "at", "within": "1d"},
    "checks": [{"left": "a", "op": "<=", "right": "b"}, {"left": "at", "op": "!=", "right": "day"}],
    "columns": {
        "id": {"type": "string"},
        "at": {"type": "timestamp"},
        "day": {"type": "date"},
        "a": {"type": "number", "min": 0, "max": 5.5, "max_null_fraction": 0.1},
        "b": {"type": "number", "allow_inf": True, "max_null_fraction": 0},
        "n": {"type": "integer", "min": 2},
        "word": {"type": "string", "categories": ["it's", "a\\b", "line\nend", "é"]},
        "flag": {"type": "boolean", "categories": [True]},
        "gone": {"type": "string"},
        "odd": {"type": "integer"},
        "y": {"type": "integer", "max_null_fraction": 0.5},
    },
}


def rows() -> pa.Table:
    inf, nan = float("inf"), float("nan")
    return pa.table(
        {
            "id": ["1", "2", "3", None, "5", "5"],
            "at": pa.array([datetime(2024, 2, day) for day in range(1, 7)], pa.timestamp("us")),
            "day": pa.array([datetime(2024, 2, 1).date()] * 6),
            "a": [0.0, -1.0, inf, nan, 6.0, None],
            "b": [-inf, 1.0, nan, 2.0, 3.0, 4.0],
            "n": [1, 2, 3, None, 5, 6],
            "word": ["it's", "a\\b", "line\nend", "é", None, "new'"],
            "flag": [True, False, None, True, True, True],
            "odd": ["a"] * 6,
            "y": [0, 1, None, 0, 1, 0],
        }
    )


@pytest.mark.parametrize("quarantine", [None, {"max_share": 0.2}])
def test_both_find_the_same(bigquery: Any, tmp_path: Path, quarantine: Any) -> None:
    schema = DataSchema.model_validate({**SCHEMA, "quarantine": quarantine})
    bigquery.load("shop.t", rows())
    about: dict[str, Any] = {"target": "y", "time": "at", "window": toy.month("2024-02")}
    database = BigQuery(connection_of("lake"))
    there = validate(database, SqlSource(connection="lake", table="shop.t"), schema, **about)
    here = validate_file(toy.write(rows(), tmp_path / "rows.parquet"), schema, **about)
    assert len(bigquery.statements) == 1
    assert there.rows == here.rows == 6
    assert [each.rule for each in there.checked] == [each.rule for each in here.checked]
    for one, other in zip(there.checked, here.checked, strict=True):
        assert (one.verdict, one.broken, one.said) == (other.verdict, other.broken, other.said)
    assert {each.verdict for each in there.checked} >= {"stop", "ok", "quarantine" if quarantine else "warn"}


def test_what_cannot_be_said_in_sql_is_named(bigquery: Any) -> None:
    schema = DataSchema.model_validate(
        {"columns": {"n": {"type": "integer"}}, "checks": [{"function": "shop.rules:good"}], "volume": {}}
    )
    bigquery.load("shop.t", pa.table({"n": np.arange(5)}))
    found = validate(BigQuery(connection_of("lake")), SqlSource(connection="lake", table="shop.t"), schema)
    not_judged = {each.rule for each in found.checked if each.verdict == "not_judged"}
    assert not_judged == {"shop.rules:good", "what is compared with the champion"}


def test_a_window_is_checked_from_the_shell(bigquery: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from airflow_mlops.cli import main

    bigquery.load("shop.toy", toy.rows("2024-02"))
    toy.months(tmp_path)
    columns = {"region": {"type": "string", "categories": ["east", "west"]}, "amount": {"type": "number", "min": 9}}
    (tmp_path / "schema.yaml").write_text(json.dumps({"columns": columns, "min_rows": 500}))
    said = []
    for source in ({"connection": "lake", "table": "shop.toy"}, "data/{window}.parquet"):
        toy.declare(tmp_path, data={"source": source, "schema": "schema.yaml"})
        assert main(["schema", "check", str(tmp_path / "toy.yaml"), "--window", "2024-02"]) == 1
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("400 rows of 2024-02\nstop: 400 rows are fewer than the 500 the schema asks for\nwarn: ")
    assert "has new categories: north, in" in said[0]
    assert len(bigquery.statements) == 1
