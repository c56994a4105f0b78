"""Rules about single rows: batches change nothing, bad rows are set aside with their reasons, limits hold."""

from __future__ import annotations

import math
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CodeError, SchemaError
from airflow_mlops.spec import DataSchema
from airflow_mlops.spec.window import parse_key
from airflow_mlops.stages.repeats import key_hashes, repeats
from airflow_mlops.stages.row_rules import RowRules
from airflow_mlops.stages.tables import write_table
from airflow_mlops.stages.validate_data import Result, validate
from tests import toy

COLUMNS: dict[str, dict[str, Any]] = {
    "id": {"type": "integer", "max_null_fraction": 0},
    "a": {"type": "number", "min": 0, "max": 10},
    "b": {"type": "number", "max_null_fraction": 0.9},
    "s": {"type": "string", "categories": ["x", "y"]},
    "t": {"type": "timestamp"},
    "u": {"type": "timestamp"},
    "k": {"type": "boolean", "categories": [True]},
}
CHECKS = [{"left": "a", "op": "<=", "right": "b"}, {"left": "t", "op": "<", "right": "u", "name": "in order"}]
KINDS = pa.schema(
    [
        ("id", pa.int64()),
        ("a", pa.float64()),
        ("b", pa.float64()),
        ("s", pa.string()),
        ("t", pa.timestamp("us")),
        ("u", pa.timestamp("us")),
        ("k", pa.bool_()),
    ]
)
_numbers = st.none() | st.sampled_from([0.0, 10.0, -1.0, 11.0, math.nan, math.inf, -math.inf]) | st.floats(0, 10)
_times = st.none() | st.integers(0, 3).map(lambda day: datetime(2024, 1, 1) + timedelta(days=day))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | st.integers(0, 8) | st.integers(2**60, 2**60 + 3),
            "a": _numbers,
            "b": _numbers,
            "s": st.sampled_from([None, "x", "y", "z", ""]),
            "t": _times,
            "u": _times,
            "k": st.sampled_from([None, True, False]),
        }
    ),
    min_size=1,
    max_size=30,
)


def schema(**more: Any) -> DataSchema:
    body: dict[str, Any] = {"columns": COLUMNS, "checks": CHECKS, "unique": ["id"], "quarantine": {"max_share": 1}}
    return DataSchema.model_validate({**body, **more})


def broken_by_hand(rows: list[dict[str, Any]]) -> list[set[str]]:
    """What each row breaks, told one row after another in plain Python."""
    seen: set[Any] = set()
    found = []
    for row in rows:
        reasons = set()
        if row["id"] is None:
            reasons.add("id is null")
        if row["id"] in seen:
            reasons.add("id stood in an earlier row")
        seen.add(row["id"])
        a, b = (None if row[name] is None or math.isnan(row[name]) else row[name] for name in ("a", "b"))
        for name, value in (("a", a), ("b", b)):
            if value is not None and math.isinf(value):
                reasons.add(f"{name} is infinite")
        if a is not None and not math.isinf(a) and a < 0:
            reasons.add("a is below 0")
        if a is not None and not math.isinf(a) and a > 10:
            reasons.add("a is above 10")
        if a is not None and b is not None and not a <= b:
            reasons.add("breaks a <= b")
        if row["s"] not in (None, "x", "y"):
            reasons.add("s is none of the categories")
        if row["k"] is False:
            reasons.add("k is none of the categories")
        if row["t"] is not None and row["u"] is not None and not row["t"] < row["u"]:
            reasons.add("breaks in order")
        found.append(reasons)
    return found


def validated(table: pa.Table, rules: DataSchema, **options: Any) -> tuple[Result, list[dict[str, Any]]]:
    """What validation finds, and the rows that it has set aside."""
    with tempfile.TemporaryDirectory() as folder:
        file, bad = Path(folder, "rows.parquet"), Path(folder, "bad.parquet")
        pq.write_table(table, file)
        result = validate(file, rules, bad=bad, **options)
        return result, pq.read_table(bad).to_pylist() if bad.exists() else []


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 31))
def test_batches_of_any_size_find_what_a_look_at_each_row_finds(rows: list[dict[str, Any]], size: int) -> None:
    table = pa.Table.from_pylist(rows, schema=KINDS)
    expected = broken_by_hand(rows)
    result, aside = validated(table, schema(), batch_rows=size)
    assert result.aside.tolist() == [bool(reasons) for reasons in expected]
    assert {row["_row"]: set(row["_reasons"].split("; ")) for row in aside} == {
        number: reasons for number, reasons in enumerate(expected) if reasons
    }
    assert result.kept == sum(not reasons for reasons in expected)
    whole, _ = validated(table, schema())
    assert result._replace(aside=None) == whole._replace(aside=None)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_the_pandera_schema_says_the_same_as_the_checks_one_by_one(rows: list[dict[str, Any]]) -> None:
    import pandera.errors

    table = pa.Table.from_pylist(rows, schema=KINDS)
    rules = RowRules(schema(unique=[]), table.schema)
    (batch,) = table.to_batches()
    found = {rule.rule for rule, _ in rules.broken(batch, 0)}
    frame = rules.frame(batch)
    try:
        rules.pandera.validate(frame, lazy=True)
        told = set()
    except pandera.errors.SchemaErrors as errors:
        told = {rules.rule_of(error.check).rule for error in errors.schema_errors}
    assert told == found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from([0, 1, -1, 2**62, 2**62 + 1]),
            st.none() | st.sampled_from(["", "a", "ab"]),
            st.none() | st.sampled_from([0.0, -0.0, math.nan, 1.5]),
        ),
        max_size=40,
    ),
    st.integers(1, 41),
)
def test_repeated_keys_are_those_that_a_set_has_seen(keys: list[tuple[Any, ...]], size: int) -> None:
    columns = [
        pa.array([key[i] for key in keys], kind) for i, kind in enumerate((pa.int64(), pa.string(), pa.float64()))
    ]
    table = pa.table(columns, names=["i", "s", "x"])
    seen: set[tuple[Any, ...]] = set()
    expected = []
    for i, s, x in keys:
        key = (i, s, None if x is None or math.isnan(x) else x + 0.0)
        expected.append(key in seen)
        seen.add(key)
    with tempfile.TemporaryDirectory() as folder:
        found = repeats(table.to_batches(size), len(keys), Path(folder))
        assert not list(Path(folder).iterdir())
    assert found.tolist() == expected


def test_the_hash_of_a_key_depends_on_the_order_of_its_columns() -> None:
    one, other = pa.record_batch({"a": [1], "b": [2]}), pa.record_batch({"a": [2], "b": [1]})
    assert key_hashes(one)[0] != key_hashes(other)[0]


def call(folder: Path, table: pa.Table, body: dict[str, Any], **more: Any) -> Call:
    store = Store(str(folder / "store"))
    return Call(
        pipeline="toy",
        stage="validate_data",
        run="dag/r",
        inputs={"data": write_table(table, store)},
        params={"schema": body},
        store=store.root,
        **more,
    )


AMOUNTS = {"columns": {"id": {"type": "integer"}, "amount": {"type": "number", "min": 0}}, "unique": ["id"]}


def amounts(count: int = 100, **changes: Any) -> pa.Table:
    columns = {"id": list(range(count)), "amount": [float(each) for each in range(count)], **changes}
    return pa.table(columns)


def page_of(outcome: Outcome, store: str) -> str:
    return Store(store).fetch(outcome.outputs["page"]).read_text()


def test_bad_rows_go_to_a_file_with_their_reasons_and_the_rest_goes_on(tmp_path: Path) -> None:
    table = amounts(id=[*range(98), 7, 7], amount=[-5.0, *range(1, 99), math.inf])
    asked = call(tmp_path, table, {**AMOUNTS, "quarantine": {"max_share": 0.03}})
    outcome = run(asked)
    assert outcome.verdict.status == "warn" and "3 of 100 rows are set aside" in outcome.verdict.reasons
    assert (outcome.outputs["data"].rows, outcome.outputs["quarantine"].rows) == (97, 3)
    kept = pq.ParquetFile(outcome.outputs["data"].uri).read()
    assert kept.schema == table.schema and kept.equals(table.slice(1, 97))
    aside = pq.ParquetFile(outcome.outputs["quarantine"].uri).read().to_pylist()
    assert [(row["_row"], row["id"], row["_reasons"]) for row in aside] == [
        (0, 0, "amount is below 0"),
        (98, 7, "id stood in an earlier row"),
        (99, 7, "amount is infinite; id stood in an earlier row"),
    ]
    assert outcome.metrics == {"warnings": 0.0, "rows": 97.0, "quarantined": 3.0}
    assert run(asked).digest == outcome.digest


def test_where_nothing_is_set_aside_the_rows_go_on_as_they_are(tmp_path: Path) -> None:
    asked = call(tmp_path, amounts(), {**AMOUNTS, "quarantine": {}})
    outcome = run(asked)
    assert outcome.verdict.status == "ok" and outcome.verdict.reasons == ()
    assert outcome.outputs["data"] == asked.inputs["data"] and "quarantine" not in outcome.outputs


def test_more_bad_rows_than_the_limit_stop_the_run(tmp_path: Path) -> None:
    bad = amounts(amount=[-1.0, -2.0, *range(98)])
    with pytest.raises(SchemaError, match=r"2 of 100 rows \(2.00%\) would be set aside; at most 1.00% may be"):
        run(call(tmp_path, bad, {**AMOUNTS, "quarantine": {}}))
    assert run(call(tmp_path, bad, {**AMOUNTS, "quarantine": {"max_share": 0.02}})).outputs["data"].rows == 98


@pytest.mark.parametrize(
    ("said", "quarantine", "status"),
    [("warn", {}, "warn"), ("stop", {"max_share": 1}, None), (None, None, "warn"), ("stop", None, None)],
)
def test_a_rule_does_what_it_says(tmp_path: Path, said: str | None, quarantine: Any, status: str | None) -> None:
    columns = {"id": {"type": "integer"}, "amount": {"type": "number", "min": 0, "on_violation": said}}
    asked = call(tmp_path, amounts(amount=[-1.0, *range(99)]), {"columns": columns, "quarantine": quarantine})
    if status is None:
        with pytest.raises(SchemaError, match="goes down to -1, below 0, in 1 row"):
            run(asked)
    else:
        outcome = run(asked)
        assert outcome.verdict.status == status and outcome.outputs["data"] == asked.inputs["data"]


def test_rows_that_repeat_a_key_stop_without_a_quarantine(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"1 row has the key of an earlier one \(id\)"):
        run(call(tmp_path, amounts(id=[0, *range(99)]), AMOUNTS))


def test_what_all_rows_together_break_is_judged_on_those_that_go_on(tmp_path: Path) -> None:
    table = amounts(4, amount=[-1.0, 1.0, 2.0, 3.0])
    body = {**AMOUNTS, "quarantine": {"max_share": 1}}
    with pytest.raises(SchemaError, match="3 rows are fewer than the 4"):
        run(call(tmp_path, table, {**body, "min_rows": 4}))
    with pytest.raises(SchemaError, match="3 rows are more than the 2"):
        run(call(tmp_path, table, {**body, "max_rows": 2}))
    with pytest.raises(SchemaError, match="0 rows are fewer than the 1"):
        run(call(tmp_path, amounts(2, amount=[-1.0, -1.0]), body))


def test_the_page_shows_values_of_the_column_and_no_other_and_escapes_them(tmp_path: Path) -> None:
    columns = {"s": {"type": "string", "categories": ["a"]}, "secret": {"type": "string"}}
    table = pa.table({"s": ["a", "<script>alert(1)</script>"], "secret": ["hush-1", "hush-2"]})
    asked = call(tmp_path, table, {"columns": columns})
    outcome = run(asked)
    page = page_of(outcome, asked.store)
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "hush" not in page and "(row 1)" in page and "What warns (1)" in page
    report = Store(asked.store).fetch_json(outcome.outputs["report"])
    assert "hush" not in str(report)
    (found,) = [rule for rule in report["rules"] if rule["verdict"] == "warn"]
    assert (found["broken"], found["columns"], found["rows"]) == (1, ["s"], [1])
    pointer = Store(asked.store).read_json("validations", f"{asked.identity}.json")
    assert pointer["run"] == "dag/r" and pointer["page"]["digest"] == outcome.outputs["page"].digest


def test_a_run_that_stops_leaves_its_page_and_names_it(tmp_path: Path) -> None:
    asked = call(tmp_path, amounts(id=["a"] * 100), {**AMOUNTS, "unique": []})
    with pytest.raises(SchemaError) as caught:
        run(asked)
    pointer = Store(asked.store).read_json("validations", f"{asked.identity}.json")
    assert pointer["page"]["uri"] in str(caught.value)
    assert "holds string, not integer" in Path(pointer["page"]["uri"]).read_text()


FUNCTIONS = """
import pandas as pd

def heavy(frame):
    return frame["amount"] < 50

def mixed(frame):
    return frame["amount"].map(lambda each: None if each > 50 else True)

def raises(frame):
    return frame["nothing"]

def numbers(frame):
    return frame["amount"]

def short(frame):
    return frame["amount"].head(3) > 0

def scalar(frame):
    return True

def changes(frame):
    frame["amount"] = -1.0
    return frame["amount"] < 0

word = "text"
"""


def checked_by(folder: Path, name: str) -> Call:
    toy.package(folder, "rules", FUNCTIONS)
    path = f"rules.features:{name}"
    code = snapshot([path], str(folder), Store(str(folder / "store")))
    body = {**AMOUNTS, "checks": [{"function": path}], "quarantine": {"max_share": 1}}
    return call(folder, amounts(), body, code=code)


def test_a_function_of_the_users_judges_rows(tmp_path: Path) -> None:
    outcome = run(checked_by(tmp_path, "heavy"))
    assert outcome.outputs["data"].rows == 50
    assert run(checked_by(tmp_path, "mixed")).outputs["data"].rows == 100
    assert run(checked_by(tmp_path, "changes")).outputs["data"].rows == 100


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raises", "raised KeyError: 'nothing'"),
        ("numbers", "gives a Series of"),
        ("short", "gives 3 values with another index for 100 rows"),
        ("scalar", "gives bool; allowed: a boolean Series"),
        ("gone", "has no 'gone'"),
    ],
)
def test_a_function_that_breaks_its_contract_is_named(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(CodeError, match="rules.features") as caught:
        run(checked_by(tmp_path, name))
    assert what in str(caught.value)


FRESH = {"columns": {"at": {"type": "timestamp"}, "d": {"type": "date"}}}


@pytest.mark.parametrize(
    ("column", "within", "at", "fresh"),
    [
        ("at", "2d", datetime(2024, 1, 30), True),
        ("at", "2d", datetime(2024, 1, 29, 23, 59, 59), False),
        ("at", "2d", None, False),
        ("d", "2d", datetime(2024, 1, 29), True),
        ("d", "2d", datetime(2024, 1, 28), False),
    ],
)
def test_freshness_is_counted_from_the_windows_end(
    tmp_path: Path, column: str, within: str, at: datetime | None, fresh: bool
) -> None:
    table = pa.table({"at": pa.array([at], pa.timestamp("us")), "d": pa.array([at and at.date()], pa.date32())})
    body = {**FRESH, "freshness": {"column": column, "within": within}}
    asked = call(tmp_path, table, body, window=parse_key("month", "2024-01"))
    if fresh:
        assert run(asked).verdict.status == "ok"
    else:
        with pytest.raises(SchemaError, match=f"the newest '{column}' is at .*, more than 2d before the window's end"):
            run(asked)


def test_freshness_in_a_zone_and_without_a_window(tmp_path: Path) -> None:
    table = pa.table({"at": [datetime(2024, 1, 31, tzinfo=UTC)], "d": pa.array([None], pa.date32())})
    body = {**FRESH, "freshness": {"column": "at", "within": "1d"}}
    assert run(call(tmp_path, table, body, window=parse_key("month", "2024-01"))).verdict.status == "ok"
    outcome = run(call(tmp_path, table, body))
    assert outcome.verdict.status == "ok"
    assert outcome.verdict.reasons == ("the freshness of 'at' was not judged: the run has no window",)


def test_columns_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    body = {"columns": {"a": {"type": "number"}, "b": {"type": "number"}}, "checks": [CHECKS[0]]}
    with pytest.raises(SchemaError, match="'b' holds string"):
        run(call(tmp_path, pa.table({"a": [1.0], "b": ["x"]}), body))
    with pytest.raises(SchemaError, match="'b' is missing"):
        run(call(tmp_path, pa.table({"a": [1.0]}), body))
    times = {"t": {"type": "timestamp"}, "u": {"type": "timestamp"}}
    zoned = pa.table({"t": [datetime(2024, 1, 1, tzinfo=UTC)], "u": [datetime(2024, 1, 1)]})
    with pytest.raises(SchemaError, match="'in order' cannot be judged: 't' holds timestamp.us, tz=UTC. and 'u' holds"):
        run(call(tmp_path, zoned, {"columns": times, "checks": [CHECKS[1]]}))


def test_a_rule_about_a_column_that_may_be_missing_is_not_judged_without_it(tmp_path: Path) -> None:
    columns = {"a": {"type": "number"}, "b": {"type": "number", "required": False}}
    asked = call(tmp_path, pa.table({"a": [1.0]}), {"columns": columns, "checks": [CHECKS[0]]})
    outcome = run(asked)
    assert outcome.verdict.status == "ok"
    report = Store(asked.store).fetch_json(outcome.outputs["report"])
    assert [rule["rule"] for rule in report["rules"] if rule["verdict"] == "not_judged"] == ["a <= b"]


def test_an_empty_file_and_a_taken_name(tmp_path: Path) -> None:
    body = {**AMOUNTS, "quarantine": {}}
    with pytest.raises(SchemaError, match="0 rows are fewer"):
        run(call(tmp_path, amounts().slice(0, 0), body))
    taken = amounts(_reasons=["x"] * 100)
    with pytest.raises(SchemaError, match="'_reasons' has a name that the quarantine needs"):
        run(call(tmp_path, taken, body))


def test_the_sample_for_the_comparison_is_the_same_for_any_batches() -> None:
    random = np.random.default_rng(1)
    table = pa.Table.from_pandas(pd.DataFrame({"x": random.normal(size=60_000)}), preserve_index=False)
    rules = DataSchema.model_validate({"columns": {"x": {"type": "number"}}, "skew": {}})
    one, _ = validated(table, rules)
    other, _ = validated(table, rules, batch_rows=777)
    assert one.sample is not None and one.sample.num_rows == 50_000
    assert other.sample is not None and one.sample.equals(other.sample)
