"""A source's forms: what is read of a query, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.source import SqlSource, numbered, quoted, source_from
from airflow_mlops.spec.wiring import problems_of
from tests import toy

PASSED_OVER = [
    "':start'",
    "'it''s :end'",
    '":start"',
    "-- :start\n",
    "/* :end\n */",
    "$$:start$$",
    "$q$ :end $q$",
    "x::date",
]


@given(st.lists(st.sampled_from([*PASSED_OVER, " ", ":start", ":end", ":starting", "a < b", "1"]), max_size=12))
def test_only_parameters_are_numbered(parts: list[str]) -> None:
    text, names = numbered(" ".join(parts))
    wanted = [part[1:] for part in parts if part in (":start", ":end")]
    assert names == tuple(dict.fromkeys(wanted))
    again = [f"${names.index(part[1:]) + 1}" if part in (":start", ":end") else part for part in parts]
    assert text == " ".join(again)


@given(st.text(min_size=1))
def test_a_quoted_name_is_one_identifier(name: str) -> None:
    inside = quoted(name)[1:-1]
    assert inside.replace('""', "").count('"') == 0
    assert inside.replace('""', '"') == name


def test_a_query_loses_its_final_semicolon_and_a_table_is_quoted() -> None:
    assert SqlSource(connection="w", query="SELECT 1 ; ").select == "SELECT 1"
    assert SqlSource(connection="w", table="shop.orders").select == 'SELECT * FROM "shop"."orders"'
    assert source_from("data.csv") == "data.csv"
    assert source_from({"connection": "w", "table": "t"}) == SqlSource(connection="w", table="t")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"connection": "w"}, "exactly one of 'query' and 'table'"),
        ({"connection": "w", "query": "SELECT 1", "table": "t"}, "exactly one of 'query' and 'table'"),
        ({"query": "SELECT 1"}, "'data.source.connection' is missing"),
        (
            {"conection": "w", "query": "SELECT 1"},
            "'conection'; allowed: connection, query, table, project, location, max_bytes, export; try: connection",
        ),
        ({"connection": "a b", "query": "SELECT 1"}, "data.source.connection is 'a b'"),
    ],
)
def test_a_wrong_source_is_told_with_its_line(tmp_path: Path, source: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        toy.declare(tmp_path, data={"source": source})
    assert words in str(caught.value)
    assert "toy.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": {"connection": "w", "query": "SELECT '{window}'"}}, "allowed: :start, :end"),
        ({"source": {"connection": "w", "table": "t"}, "format": "csv"}, "a database has no file format"),
        ({"source": {"connection": "w", "table": "t"}, "time": None}, "declare data.time"),
    ],
)
def test_lint_sees_what_does_not_go_together(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    declaration = toy.declare(tmp_path, data=data, train={"windows": {"last": 2}})
    assert any(words in problem for problem in problems_of(declaration))


def test_a_database_source_is_right(tmp_path: Path) -> None:
    data = {"source": {"connection": "w", "query": "SELECT * FROM t WHERE at < :end"}, "time": None, "settle": "1d"}
    assert problems_of(toy.declare(tmp_path, data=data, train={"windows": {"last": 2}})) == []
