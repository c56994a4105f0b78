"""Requests of MLflow's protocol to columns: any rows go there and back in every form, and no body breaks anything."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_mlops.serving.protocol import RequestError, Rows, error_body, read_rows, table_of, together

JSON, CSV = "application/json", "text/csv"
COLUMNS = {
    "amount": "double",
    "small": "float",
    "count": "int64",
    "byte": "int8",
    "member": "bool",
    "region": "string",
    "seen": "timestamp[us]",
    "zoned": "timestamp[us, tz=UTC]",
    "born": "date32[day]",
}
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "amount": st.floats(allow_nan=False, allow_infinity=False),
    "small": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "count": st.integers(-(2**63), 2**63 - 1),
    "byte": st.integers(-128, 127),
    "member": st.booleans(),
    "region": TEXTS,
    "seen": MOMENTS,
    "zoned": MOMENTS.map(lambda at: at.replace(tzinfo=UTC)),
    "born": st.dates(),
}
TABLES = st.lists(
    st.fixed_dictionaries({name: st.none() | value for name, value in VALUES.items()}), min_size=1, max_size=6
)


def plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else value.isoformat()


def table(body: bytes, kind: str = JSON) -> pa.Table:
    return table_of(read_rows(body, kind, COLUMNS), COLUMNS)


def forms(rows: list[dict[str, Any]]) -> list[tuple[bytes, str]]:
    """The same rows in every form of the protocol."""
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    said = [
        {"dataframe_split": {"columns": list(COLUMNS), "data": [[row[name] for name in COLUMNS] for row in rows]}},
        {"dataframe_records": rows},
        {"instances": rows},
        {"inputs": rows, "params": {}},
        {"inputs": columns},
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(["" if row[name] is None else row[name] for name in COLUMNS] for row in rows)
    return [*((json.dumps(each).encode(), JSON) for each in said), (text.getvalue().encode(), CSV)]


@given(TABLES)
def test_any_rows_come_out_of_every_form_as_they_went_in(rows: list[dict[str, Any]]) -> None:
    for body, kind in forms([{name: plain(value) for name, value in row.items()} for row in rows]):
        found = table(body, kind)
        assert {field.name: str(field.type) for field in found.schema} == COLUMNS
        assert found.to_pylist() == rows


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_requests_together_are_the_rows_of_each(requests: list[list[dict[str, Any]]]) -> None:
    read = [
        read_rows(forms([{name: plain(value) for name, value in row.items()} for row in rows])[1][0], JSON, COLUMNS)
        for rows in requests
    ]
    assert table_of(together(read, COLUMNS), COLUMNS).to_pylist() == [row for rows in requests for row in rows]


def test_a_kept_column_that_one_request_lacks_is_null_there() -> None:
    rows = together([Rows({"a": (1, 2), "id": ("x", "y")}, 2), Rows({"a": (3,)}, 1)], ("a", "id", "never"))
    assert rows == Rows({"a": [1, 2, 3], "id": ["x", "y", None]}, 3)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, ANY), optional={"id": ANY}), max_size=3)
SPLIT = st.fixed_dictionaries(
    {"columns": st.just(list(COLUMNS)) | ANY, "data": st.lists(st.lists(ANY, min_size=9, max_size=9), max_size=3)}
)
BODIES = st.one_of(
    st.binary(max_size=200),
    ANY.map(json.dumps).map(str.encode),
    st.dictionaries(st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]), ANY)
    .map(json.dumps)
    .map(str.encode),
    ROWS.map(lambda rows: json.dumps({"instances": rows}).encode()),
    SPLIT.map(lambda split: json.dumps({"dataframe_split": split}).encode()),
)


@given(BODIES, st.sampled_from([JSON, CSV, "", "text/xml"]))
@example(b"[" * 100_000, JSON)
@example(b'{"a": [NaN, ' + b"[" * 100_000, JSON)
@example(b'"\xff"', JSON)
@example(b'{"inputs": [NaN, "\\ud800"]}', JSON)
@example(b'{"\\ud800": [NaN]}', JSON)
@example(b'{"inputs": {"amount": [NaN, 1e999]}}', JSON)
@example(b'{"inputs": {"amount": [1e999]}}', JSON)
@example(b'{"inputs": {"amount": [1' + b"0" * 5000 + b"]}}", JSON)
@example(b'{"inputs": [NaN, 1' + b"0" * 5000 + b"]}", JSON)
@example(b'"' + b"a" * 200_000, CSV)
@example(b"a\x00b\n1\n", CSV)
def test_no_body_raises_anything_but_what_the_client_is_told(body: bytes, kind: str) -> None:
    try:
        found = table(body, kind)
    except RequestError as error:
        assert 400 <= error.status < 500 or error.status == 501
        said = msgspec.json.decode(error.body())
        assert said["error_code"] and 0 < len(said["message"]) <= 2000
    else:
        assert {field.name: str(field.type) for field in found.schema} == COLUMNS


ONE: dict[str, Any] = {
    "amount": 1.5,
    "small": 1,
    "count": 3,
    "byte": 3,
    "member": True,
    "region": "east",
    "seen": "2024-02-01T10:00:00",
    "zoned": "2024-02-01T10:00:00Z",
    "born": "1990-05-01",
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("amount", "1.5", "'amount', row 1: '1.5' is not a number"),
        ("amount", True, "'amount', row 1: True is not a number"),
        ("amount", {"a": 1}, "is not a number"),
        ("count", 2.5, "'count', row 1: 2.5 is not a whole number"),
        ("count", 2**63, "'count' has a value that does not fit into int64"),
        ("byte", 200, "'byte' has a value that does not fit into int8"),
        ("member", 1, "'member', row 1: 1 is not true or false"),
        ("region", 5, "'region', row 1: 5 is not a text"),
        ("seen", "yesterday", "'seen', row 1: 'yesterday' is not a time in ISO 8601"),
        ("born", "1990-13-01", "'born', row 1: '1990-13-01' is not a date"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_column_and_row(name: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        table(json.dumps({"dataframe_records": [ONE, {**ONE, name: value}]}).encode())
    assert said in caught.value.what


@pytest.mark.parametrize("literal", [b"Infinity", b"-Infinity", b"1e999"])
def test_what_is_infinite_is_no_number_even_beside_a_nan(literal: bytes) -> None:
    body = json.dumps({"dataframe_records": [ONE, {**ONE, "amount": None}]}).encode()
    assert table(body.replace(b"null", b"NaN"))["amount"].to_pylist() == [1.5, None]
    with pytest.raises(RequestError):
        table(body.replace(b"null", b"NaN").replace(b'"small": 1', b'"small": ' + literal))


def test_a_million_names_cost_no_more_than_they_are() -> None:
    """Neither a table as wide as it is long nor a search of each name among all."""
    records = [{f"c{number}": number} for number in range(50_000)]
    with pytest.raises(RequestError, match="missing columns"):
        table(json.dumps({"instances": records}).encode())
    wide = {"columns": [f"c{number}" for number in range(50_000)], "data": []}
    with pytest.raises(RequestError, match="missing columns"):
        table(json.dumps({"dataframe_split": wide}).encode())


def test_an_error_is_short_and_text_whatever_it_quotes() -> None:
    said = msgspec.json.decode(error_body("X", "\ud800" + "long" * 1000))
    assert len(said["message"]) <= 2010 and said["message"].startswith("\\ud800")
