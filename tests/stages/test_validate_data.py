"""Data validation: what stops a run, what only warns, and what inference proposes."""

from __future__ import annotations

import math
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.call import Call, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec import DataSchema, dump_schema, load_schema
from airflow_mlops.spec.window import parse_key
from airflow_mlops.stages.infer_schema import infer
from airflow_mlops.stages.tables import write_table
from airflow_mlops.stages.validate_data import Result, validate
from tests import toy

GOOD = {"n": [1, 2], "x": [0.5, None], "s": ["a", "b"]}
COLUMNS: dict[str, dict[str, Any]] = {
    "n": {"type": "integer", "max_null_fraction": 0, "min": 1, "max": 2},
    "x": {"type": "number", "max_null_fraction": 0.5},
    "s": {"type": "string", "categories": ["a", "b"]},
}


def schema(columns: dict[str, dict[str, Any]] | None = None, **rest: Any) -> DataSchema:
    return DataSchema.model_validate({"columns": columns if columns is not None else COLUMNS, **rest})


def changed(column: str, **rules: Any) -> DataSchema:
    return schema({**COLUMNS, column: {**COLUMNS[column], **rules}})


def validated(table: pa.Table, rules: DataSchema | None, **options: Any) -> Result:
    """Validate a table through a file, as the stage does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(table, file)
        return validate(file, rules, **options)


def said(table: pa.Table, rules: DataSchema | None, **options: Any) -> list[tuple[str, str]]:
    return [(each.verdict, each.said) for each in validated(table, rules, **options).checked if each.said]


def findings(table: dict[str, Any], rules: DataSchema | None, **options: Any) -> list[tuple[str, str]]:
    return said(pa.table(table), rules, **options)


def test_good_rows_have_no_finding() -> None:
    assert findings(GOOD, schema(), target="n") == []


@pytest.mark.parametrize(
    ("table", "rules", "what"),
    [
        ({"n": [1, 2], "x": [0.5, 1]}, schema(), "the column 's' is missing"),
        ({**GOOD, "n": ["1", "2"]}, schema(), "the column 'n' holds string, not integer"),
        ({**GOOD, "n": [1.0, 2.0]}, schema(), "the column 'n' holds double, not integer"),
        ({**GOOD, "n": [1, None]}, schema(), "50.00% of the column 'n' are nulls; at most 0.00%"),
        ({**GOOD, "x": [math.nan, None]}, schema(), "100.00% of the column 'x' are nulls"),
        ({**GOOD, "x": [math.inf, 1.0]}, schema(), "the column 'x' has 1 infinite values"),
        (GOOD, schema(min_rows=3), "2 rows are fewer than the 3"),
        ({**GOOD, "more": [1, 2]}, schema(extra_columns="stop"), "the column 'more' is not in the schema"),
        ({**GOOD, "n": [0, 2]}, changed("n", on_violation="stop"), "goes down to 0, below 1"),
        ({**GOOD, "s": ["a", "c"]}, changed("s", on_violation="stop"), "new categories: c"),
    ],
)
def test_a_hard_rule_stops(table: dict[str, Any], rules: DataSchema, what: str) -> None:
    ((severity, sentence),) = findings(table, rules)
    assert severity == "stop" and what in sentence


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({**GOOD, "n": [0, 2]}, "the column 'n' goes down to 0, below 1, in 1 row"),
        ({**GOOD, "n": [1, 3]}, "the column 'n' goes up to 3, above 2, in 1 row"),
        ({**GOOD, "s": ["d", "c"]}, "the column 's' has new categories: c, d, in 2 rows"),
        ({**GOOD, "more": [1, 2]}, "the column 'more' is not in the schema"),
    ],
)
def test_a_soft_rule_warns(table: dict[str, Any], what: str) -> None:
    assert findings(table, schema()) == [("warn", what)]


@pytest.mark.parametrize(
    ("table", "rules"),
    [
        ({**GOOD, "x": [1, 2]}, schema()),
        ({**GOOD, "x": pa.nulls(2, pa.float64())}, changed("x", max_null_fraction=1)),
        ({**GOOD, "x": pa.nulls(2)}, changed("x", max_null_fraction=1)),
        ({**GOOD, "x": [math.inf, 1.0]}, changed("x", allow_inf=True)),
        ({**GOOD, "more": [1, 2]}, schema(extra_columns="allow")),
        ({"n": [1, 2], "x": [0.5, 1]}, changed("s", required=False)),
        ({**GOOD, "s": ["a", None]}, schema()),
    ],
)
def test_what_the_schema_allows_is_no_finding(table: dict[str, Any], rules: DataSchema) -> None:
    assert findings(table, rules) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"target": "y"}, "the target 'y' is missing; there are n, x, s"),
        ({"target": "x"}, "the target 'x' has 1 nulls"),
        ({"time": "at"}, "the time column 'at' is missing"),
        ({"time": "s"}, "the time column 's' holds string"),
    ],
)
def test_target_and_time_are_looked_at_without_a_schema(options: dict[str, Any], what: str) -> None:
    assert findings(GOOD, None, **options) == [("stop", what)]
    assert ("stop", what) in findings(GOOD, schema(), **options)


def test_nan_is_a_null_in_a_target_too() -> None:
    assert findings({"y": [1.0, math.nan]}, None, target="y") == [("stop", "the target 'y' has 1 nulls")]


def test_infinities_stop_without_a_schema() -> None:
    assert findings({"x": [1.0, -math.inf]}, None) == [("stop", "the column 'x' has 1 infinite values")]


def call(folder: Path, table: pa.Table, **params: Any) -> Call:
    store = Store(str(folder / "store"))
    inputs = {"data": write_table(table, store)}
    return Call(pipeline="toy", stage="validate_data", run="r", inputs=inputs, params=params, store=store.root)


def test_every_broken_hard_rule_is_named_at_once(tmp_path: Path) -> None:
    body = schema().model_dump(mode="json", by_alias=True)
    bad = pa.table({"n": ["1"], "x": [math.inf]})
    with pytest.raises(SchemaError) as caught:
        run(call(tmp_path, bad, schema=body, target="y"))
    for part in ("'y' is missing", "'n' holds string", "'x' has 1 infinite", "'s' is missing", "stage 'validate_data'"):
        assert part in str(caught.value)


def test_soft_rules_warn_and_the_report_tells_of_every_column(tmp_path: Path) -> None:
    body = schema().model_dump(mode="json", by_alias=True)
    outcome = run(call(tmp_path, pa.table({**GOOD, "n": [1, 9]}), schema=body, target="n"))
    assert (outcome.verdict.status, outcome.verdict.passed) == ("warn", True)
    assert outcome.verdict.reasons == ("the column 'n' goes up to 9, above 2, in 1 row",)
    report = Store(str(tmp_path / "store")).fetch_json(outcome.outputs["report"])
    assert report["columns"]["n"] == {"type": "int64", "nulls": 0, "min": 1.0, "max": 9.0}
    assert report["rows"] == 2 and len(report["findings"]) == 1


def test_rows_pass_the_schema_inferred_from_them_after_a_trip_through_its_file(tmp_path: Path) -> None:
    table = toy.rows("2024-01")
    file = tmp_path / "schema.yaml"
    file.write_text(dump_schema(*infer(table)))
    rules = load_schema(file)
    assert said(table, rules, target="y", time="at") == []
    assert {name: column.type for name, column in rules.columns.items()} == {
        "id": "string",
        "at": "timestamp",
        "amount": "number",
        "age": "number",
        "region": "string",
        "member": "boolean",
        "y": "integer",
    }
    assert rules.columns["region"].categories == ("east", "north", "west")
    assert rules.columns["id"].categories is None


CELLS = {
    "i": st.integers(-(2**53), 2**53),
    "x": st.floats(allow_infinity=False, width=32),
    "b": st.booleans(),
    "s": st.text(max_size=3),
    "t": st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)),
    "d": st.dates(min_value=date(1970, 1, 1)),
}


@given(st.lists(st.fixed_dictionaries({name: st.none() | cell for name, cell in CELLS.items()}), min_size=1))
def test_any_rows_pass_the_schema_inferred_from_them(rows: list[dict[str, Any]]) -> None:
    kinds = [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("us"), pa.date32()]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(zip(CELLS, kinds, strict=True))))
    assert said(table, infer(table).schema) == []


def test_inference_takes_no_seen_value_for_a_rule_and_tells_what_it_saw() -> None:
    table = pa.table(
        {
            "id": pa.array(range(1, 1001)),
            "at": pa.array([datetime(2024, 1, 30)] * 1000),
            "big": pa.array([2**53 + 1, 7] * 500),
            "cold": pa.array([-1.5, 2.25] * 500),
            "flag": pa.array([1] * 1000),
            "note": pa.array([f"text {each}" for each in range(1000)]),
            "void": pa.nulls(1000, pa.float64()),
            "y": pa.array([0, 1] * 500),
        }
    )
    window = parse_key("month", "2024-01")
    proposed, hints = infer(table, key=("id",), time="at", target="y", window=window)
    ends = {name: (column.min, column.max) for name, column in proposed.columns.items()}
    assert ends.pop("big") == ends.pop("flag") == (0, None)
    assert set(ends.values()) == {(None, None)}
    assert proposed.columns["y"].categories == (0, 1) and proposed.columns["id"].categories is None
    assert (proposed.unique, proposed.freshness and proposed.freshness.within.days) == (("id",), 4)
    assert hints == {
        "id": "the key; 1 to 1,000 here",
        "at": "when a row happened",
        "big": "7 to 9,007,199,254,740,993 here",
        "cold": "-1.5 to 2.25 here",
        "flag": "nothing but 1 here",
        "note": "another text in every row",
        "void": "nothing but nulls here",
        "y": "the target",
    }
    assert "  cold: {type: number, max_null_fraction: 0.0}  # -1.5 to 2.25 here\n" in dump_schema(proposed, hints)


def test_whole_limits_stay_whole(tmp_path: Path) -> None:
    rules = schema({"n": {"type": "integer", "min": 2**53 + 1, "max": 1.5e300}})
    written = dump_schema(rules)
    assert "min: 9007199254740993," in written
    assert findings({"n": [2**53]}, rules)[0][1].startswith("the column 'n' goes down to")
    assert findings({"n": [2**53 + 1]}, rules) == []


def test_inference_names_a_column_that_no_schema_can_hold() -> None:
    with pytest.raises(SchemaError, match="'l' holds list"):
        infer(pa.table({"l": [[1]]}))


def test_times_with_a_zone_and_decimals_are_inferred() -> None:
    table = pa.table({"t": [datetime(2024, 1, 1, tzinfo=UTC)], "d": [Decimal("1.5")]})
    assert [column.type for column in infer(table).schema.columns.values()] == ["timestamp", "number"]
