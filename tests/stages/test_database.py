"""Extraction from real databases: types, windows, snapshots, and a connection that breaks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi

from airflow_mlops.call import ArtifactRef, Call, Store
from airflow_mlops.call.connection import Connection
from airflow_mlops.errors import DataError, DataNotFoundError, MlopsError, SchemaError, SourceUnreachableError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages import database
from airflow_mlops.stages import extract as stage
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.tables import read_table
from tests import toy

PASSWORD = "pa'ss\\ w%rd@1"


class Warehouse:
    """A schema of its own in the session's PostgreSQL, which the connection ``warehouse`` reads."""

    def __init__(self, host: str) -> None:
        self.session = dbapi.connect(f"host={host} user=postgres dbname=postgres", autocommit=True)
        self.host = host
        self.run("DROP SCHEMA IF EXISTS shop CASCADE", "CREATE SCHEMA shop", "SET search_path TO shop")

    def run(self, *statements: str) -> Any:
        with self.session.cursor() as cursor:
            for each in statements:
                cursor.execute(each)
                found = cursor.fetch_arrow_table()
        return found

    def connection(self, **changed: Any) -> str:
        # Other than UTC, so that a comparison in the session's own zone would be seen.
        extra = {"options": "-c search_path=shop -c TimeZone=America/New_York"}
        fields = {"conn_type": "postgres", "host": self.host, "login": "postgres", "schema": "postgres"}
        return json.dumps({**fields, "password": PASSWORD, "extra": extra, **changed})


@pytest.fixture
def warehouse(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warehouse]:
    made = Warehouse(postgres)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", made.connection())
    yield made
    made.session.close()


def call(folder: Path, params: Extract, month: str | None, run: str) -> Call:
    return Call(
        pipeline="toy",
        stage="extract",
        run=run,
        window=toy.month(month) if month else None,
        params=params.model_dump(mode="json"),
        store=str(folder / "store"),
    )


def take(
    folder: Path, month: str | None = "2024-02", run: str = "r", *, query: str = "SELECT * FROM t", **options: Any
) -> tuple[ArtifactRef, pa.Table]:
    store = Store(str(folder / "store"))
    source = options.pop("source", {"connection": "warehouse", "query": query})
    params = Extract.model_validate({"source": source, "grain": "month", **options})
    ref = extract(params, toy.month(month) if month else None, store, call(folder, params, month, run))
    return ref, read_table(ref, store)


def numbers(warehouse: Warehouse, kind: str = "timestamptz") -> None:
    """A row every six hours of 2024, at UTC's full hours."""
    warehouse.run(
        "CREATE TABLE t AS SELECT i AS n, (timestamptz '2024-01-01 00:00Z' + i * interval '6 hours') "
        "AT TIME ZONE 'UTC' AS at FROM generate_series(0, 1463) i",
        f"ALTER TABLE t ALTER at TYPE {kind}" + (" USING at AT TIME ZONE 'UTC'" if kind == "timestamptz" else ""),
    )


def months(table: pa.Table) -> list[str]:
    return sorted({str(at)[:7] for at in table["at"].to_pylist()})


def test_every_type_a_model_can_use(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.run("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    table = take(
        tmp_path,
        None,
        query="""
            SELECT 1::int2 AS i2, 2::int4 AS i4, 3::int8 AS i8, 0.5::float4 AS f4, 0.25::float8 AS f8,
                   1.50::numeric(12, 2) AS price, 'NaN'::numeric AS nan, true AS b, 'x'::text AS s, 'ok'::mood AS e,
                   date '2024-02-29' AS d, timestamp '2024-02-29 01:02:03.5' AS ts,
                   timestamptz '2024-02-29 01:02:03+05' AS tz, '{"a": 1}'::json AS j,
                   '00000000-0000-0000-0000-000000000001'::uuid AS u
            UNION ALL
            SELECT null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
        """,
    )[1]
    first, second = table.to_pylist()
    assert first.pop("nan") != first.get("nan")
    assert first == {
        "i2": 1,
        "i4": 2,
        "i8": 3,
        "f4": 0.5,
        "f8": 0.25,
        "price": 1.5,
        "b": True,
        "s": "x",
        "e": "ok",
        "d": date(2024, 2, 29),
        "ts": datetime(2024, 2, 29, 1, 2, 3, 500_000),
        "tz": datetime(2024, 2, 28, 20, 2, 3, tzinfo=UTC),
        "j": '{"a": 1}',
        "u": str(UUID(int=1)),
    }
    assert set(second.values()) == {None}
    assert str(table.schema.field("tz").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize("kind", ["inet", "interval", "money"])
def test_a_type_that_no_model_can_use_is_named(warehouse: Warehouse, tmp_path: Path, kind: str) -> None:
    value = {"inet": "127.0.0.1", "interval": "1 day", "money": "1"}[kind]
    with pytest.raises(SchemaError, match=rf"'odd' is of the database's type {kind}.*odd::text"):
        take(tmp_path, None, query=f"SELECT '{value}'::{kind} AS odd")


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_the_window_is_utc_whatever_the_session_s_zone(warehouse: Warehouse, tmp_path: Path, kind: str) -> None:
    numbers(warehouse, kind)
    table = take(tmp_path, time="at")[1]
    assert table["n"].to_pylist() == list(range(31 * 4, 60 * 4))
    assert take(tmp_path, time="at", last=2)[1]["n"].to_pylist() == list(range(60 * 4))
    assert take(tmp_path, None, time="at")[1].num_rows == 1464


def test_a_date_is_a_time_too(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.run("CREATE TABLE t AS SELECT date '2024-01-31' + i AS at FROM generate_series(0, 60) i")
    days = take(tmp_path, time="at")[1]["at"].to_pylist()
    assert (days[0], days[-1], len(days)) == (date(2024, 2, 1), date(2024, 2, 29), 29)


def test_a_query_may_name_its_window(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    query = """SELECT n, ':start' AS ":end" -- not :start
        FROM t WHERE at < :end AND at >= :start AND at::date IS NOT NULL;"""
    table = take(tmp_path, query=query)[1]
    assert (table["n"][0].as_py(), table.num_rows, table[":end"][0].as_py()) == (124, 116, ":start")
    # As of the window's end, however old.
    assert take(tmp_path, query="SELECT * FROM t WHERE at < :end")[1].num_rows == 240
    with pytest.raises(DataNotFoundError, match="names a window, and the run has none"):
        take(tmp_path, None, query=query)


def test_a_table_is_read_with_names_as_they_are_written(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.run('CREATE TABLE "Odd ""Name" AS SELECT timestamp \'2024-02-03\' AS "when it was", 1 AS x')
    source = {"connection": "warehouse", "table": 'shop.Odd "Name'}
    assert take(tmp_path, source=source, time="when it was")[1]["x"].to_pylist() == [1]


def test_rows_come_in_batches_and_all_of_them(warehouse: Warehouse, tmp_path: Path) -> None:
    count = 2 * database.BATCH_ROWS
    for rows in (count, count + 1):
        query = f"SELECT i AS n, 'x' || i AS s FROM generate_series(1, {rows}) i"
        table = take(tmp_path, None, str(rows), query=query)[1]
        assert table["n"].to_pylist() == list(range(1, rows + 1))


def test_a_settled_window_is_read_once(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    first = take(tmp_path, "2024-01", "one", time="at")[0]
    warehouse.run("UPDATE t SET n = -1")
    assert take(tmp_path, "2024-01", "two", time="at")[0] == first
    # Only the new window is asked for.
    table = take(tmp_path, "2024-02", "three", time="at", last=2)[1]
    assert [value == -1 for value in table["n"].to_pylist()] == [False] * 124 + [True] * 116
    assert months(table) == ["2024-01", "2024-02"]
    warehouse.run("DROP TABLE t")
    assert take(tmp_path, "2024-02", "four", time="at", last=2)[1] == table


def test_a_row_that_came_after_the_window_s_end_is_not_seen(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    options: dict[str, Any] = {"time": "at", "last": 2}
    first = take(tmp_path, "2024-02", "one", **options)[0]
    # What happened later, down to the very end; and what happened before and was written down too late.
    warehouse.run(
        "INSERT INTO t VALUES (-1, '2024-03-01 00:00Z'), (-2, '2024-02-29 23:59:59.999999Z'), (-3, '2024-01-01 00:00Z')"
    )
    assert take(tmp_path, "2024-02", "two", **options)[0] == first
    # Whoever wants what was late says so, and still sees nothing of what came after.
    anew = take(tmp_path, "2024-02", "three", snapshots="refresh", **options)[1]
    assert sorted(anew["n"].to_pylist())[:3] == [-3, -2, 0] and anew.num_rows == 242
    assert max(anew["at"].to_pylist()) < datetime(2024, 3, 1, tzinfo=UTC)
    assert -1 in take(tmp_path, "2024-03", "four", **options)[1]["n"].to_pylist()


def test_a_refresh_reads_anew_and_what_it_read_is_reused(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    first = take(tmp_path, "2024-01", "one", time="at")[0]
    warehouse.run("UPDATE t SET n = -1")
    second = take(tmp_path, "2024-01", "two", time="at", snapshots="refresh")[0]
    assert second.digest != first.digest
    assert take(tmp_path, "2024-01", "three", time="at")[0] == second
    # The run that had the first still has it.
    assert take(tmp_path, "2024-01", "one", time="at")[0] == first


@pytest.mark.parametrize("options", [{"settle": "36500d"}, {"snapshots": "refresh"}])
def test_a_retry_gets_the_same_rows_and_another_run_gets_new_ones(
    warehouse: Warehouse, tmp_path: Path, options: dict[str, Any]
) -> None:
    numbers(warehouse)
    first = take(tmp_path, "2024-01", "one", time="at", **options)[0]
    warehouse.run("UPDATE t SET n = -1")
    assert take(tmp_path, "2024-01", "one", time="at", **options)[0] == first
    assert take(tmp_path, "2024-01", "two", time="at", **options)[0] != first


def test_a_whole_table_is_read_anew_by_each_run_and_kept_for_its_retries(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    first = take(tmp_path, None, "one")[0]
    warehouse.run("DELETE FROM t WHERE n > 9")
    assert take(tmp_path, None, "one")[0] == first
    assert take(tmp_path, None, "two")[1].num_rows == 10


def test_an_empty_window_is_asked_for_again(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    warehouse.run("CREATE TABLE late AS SELECT * FROM t WHERE at >= '2024-02-01'")
    with pytest.raises(DataNotFoundError, match="no rows in the window 2024-01"):
        take(tmp_path, "2024-01", query="SELECT * FROM late", time="at")
    assert take(tmp_path, "2024-02", query="SELECT * FROM late", time="at", last=2)[0].rows == 116
    warehouse.run("INSERT INTO late SELECT * FROM t WHERE at < '2024-02-01 00:00Z'")
    assert take(tmp_path, "2024-02", "two", query="SELECT * FROM late", time="at", last=2)[0].rows == 240


def test_another_query_or_database_has_other_snapshots(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(warehouse)
    assert take(tmp_path, time="at", run="one")[0].rows == 116
    assert take(tmp_path, time="at", run="two", query="SELECT * FROM t WHERE n < 130")[0].rows == 6
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.connection(schema="nowhere"))
    with pytest.raises(DataError, match='database "nowhere" does not exist'):
        take(tmp_path, time="at", run="three")


def test_a_record_says_what_was_read_and_nothing_secret(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    ref = take(tmp_path, time="at")[0]
    (file,) = (tmp_path / "store" / "snapshots" / "toy").rglob("000001.json")
    record = json.loads(file.read_text())
    assert file.parent.name == record["window"] == "2024-02"
    assert record["artifact"] == ref.model_dump(mode="json")
    assert record["times"] == ["2024-02-01T00:00:00+00:00", "2024-02-29T18:00:00+00:00"]
    assert (record["pipeline"], record["source"]["connection"], record["artifact"]["rows"]) == ("toy", "warehouse", 116)
    assert_no_secret(tmp_path)


def assert_no_secret(folder: Path) -> None:
    for file in folder.rglob("*"):
        assert not (file.is_file() and PASSWORD.encode() in file.read_bytes().replace(b"\\\\", b"\\")), file


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT nothing FROM t", 'column "nothing" does not exist'),
        ("SELEC", "syntax error"),
        ("SELECT 1 AS n; DROP TABLE t", "multiple commands"),
        ("SELECT 1 / (n - 1) AS n FROM t", "division by zero"),
        ("WITH gone AS (DELETE FROM t RETURNING n) SELECT * FROM gone", "data-modifying"),
        ("SELECT n FROM t WHERE at = :begin", "syntax error"),
        ("SELECT 1 AS a, 2 AS a", "'a' stands twice"),
    ],
)
def test_a_query_that_cannot_be_answered(warehouse: Warehouse, tmp_path: Path, query: str, words: str) -> None:
    numbers(warehouse)
    with pytest.raises(DataError, match=words) as caught:
        take(tmp_path, None, query=query)
    assert not caught.value.retryable
    assert warehouse.run("SELECT count(*) AS n FROM t")["n"].to_pylist() == [1464]


def test_a_database_that_cannot_be_reached_is_worth_a_retry(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.connection(host="127.0.0.1", port=1))
    with pytest.raises(SourceUnreachableError, match="Connection refused") as caught:
        take(tmp_path, None)
    assert caught.value.retryable
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.connection(login="nobody"))
    with pytest.raises(DataError, match='lets nobody in.*role "nobody" does not exist') as refused:
        take(tmp_path, None)
    assert not refused.value.retryable


def test_a_peer_that_is_gone_is_noticed_unless_the_connection_says_otherwise() -> None:
    usual = database._conninfo(Connection("c", "postgres", host="h"))
    assert "keepalives_idle='60'" in usual and "password" not in usual
    own = database._conninfo(Connection("c", "postgres", extra={"keepalives": 0, "keepalives_idle": 5, "sslmode": ""}))
    assert "keepalives='0'" in own and "keepalives_idle='5'" in own and "sslmode" not in own


def test_a_password_is_never_in_an_error(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The database says the password itself, as an option that it does not know.
    changed = {"password": "pa'sw%rd@1", "extra": {"options": "-c pa'sw%rd@1=1"}}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.connection(**changed))
    with pytest.raises(MlopsError) as caught:
        take(tmp_path, None)
    assert 'configuration parameter "***"' in str(caught.value)
    assert "w%rd" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_connection_that_is_cut_mid_read_leaves_nothing_half_and_the_retry_succeeds(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(warehouse)
    warehouse.run("CREATE TABLE wide AS SELECT t.*, i AS copy FROM t, generate_series(1, 200) i")
    honest = database._PostgresRows._fetch
    fetches = 0

    def cut(rows: database._PostgresRows) -> pa.Table:
        nonlocal fetches
        fetches += 1
        if fetches == 4:  # January has two batches: February's second is cut.
            warehouse.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'airflow-mlops'"
            )
        return honest(rows)

    monkeypatch.setattr(database._PostgresRows, "_fetch", cut)
    options: dict[str, Any] = {"query": "SELECT * FROM wide", "time": "at", "last": 2}
    with pytest.raises(SourceUnreachableError, match="broke off.*terminating connection"):
        take(tmp_path, **options)
    left = list((tmp_path / "store").rglob("*.parquet"))
    assert len(left) == 1  # January, whole
    fetches = 4
    ref, table = take(tmp_path, **options)
    assert ref.rows == 240 * 200
    assert sorted(table["n"].to_pylist()) == sorted(list(range(240)) * 200)
    assert left[0].exists()


def test_a_missing_driver_says_what_to_install(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adbc_driver_postgresql", None)
    with pytest.raises(DataError, match=r"pip install 'airflow-mlops\[postgres\]'"):
        take(tmp_path, None)


def test_a_connection_that_is_not_there_or_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_WAREHOUSE", raising=False)
    with pytest.raises(DataError, match="no connection 'warehouse'.*AIRFLOW_CONN_WAREHOUSE"):
        take(tmp_path, None)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "mysql://u:p@h/d")
    with pytest.raises(DataError, match="type 'mysql'.*allowed: postgres, sqlite"):
        take(tmp_path, None)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    file = tmp_path / "Shop.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", f"sqlite:///{file}")
    return sqlite3.connect(file, isolation_level=None)


def test_sqlite_is_read_too(sqlite: sqlite3.Connection, tmp_path: Path) -> None:
    sqlite.execute("CREATE TABLE t (n, at, x, s)")
    rows = [
        (0, "2024-01-31 23:59:59.9", 1, None),
        (1, "2024-02-01", 0.5, None),
        (2, "2024-02-29T23:30:00-00:15", 2, "a"),
        (3, "2024-03-01 00:30:00+01:00", None, "b"),
        (4, "2024-03-01T00:00:00Z", None, "c"),
    ]
    sqlite.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    table = take(tmp_path, time="at")[1]
    assert table.to_pydict() == {
        "n": [1, 2, 3],
        "at": [datetime(2024, 2, 1), datetime(2024, 2, 29, 23, 45), datetime(2024, 2, 29, 23, 30)],
        "x": [0.5, 2.0, None],
        "s": [None, "a", "b"],
    }
    named = take(tmp_path, query="SELECT n FROM t WHERE datetime(at) < :end AND ':start' <> ''")[1]
    assert named["n"].to_pylist() == [0, 1, 2, 3]


def test_sqlite_columns_keep_to_one_type_over_all_batches(
    sqlite: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BATCH_ROWS", 2)
    sqlite.execute("CREATE TABLE t (late, mixed)")
    sqlite.executemany("INSERT INTO t VALUES (?, ?)", [(None, 1), (None, 2), (None, 3), ("a", 4.5)])
    assert take(tmp_path, None)[1].to_pydict() == {"late": [None, None, None, "a"], "mixed": [1.0, 2.0, 3.0, 4.5]}
    sqlite.execute("INSERT INTO t VALUES (1, 'x')")
    with pytest.raises(SchemaError, match="'late' holds integer and text"):
        take(tmp_path, None, "two")


def test_sqlite_is_never_written_to(sqlite: sqlite3.Connection, tmp_path: Path) -> None:
    sqlite.execute("CREATE TABLE t AS SELECT 1 AS n")
    with pytest.raises(DataError, match="refuses the query"):
        take(tmp_path, None, query="DELETE FROM t RETURNING n")
    with pytest.raises(DataError, match="no such table: nowhere"):
        take(tmp_path, None, query="SELECT * FROM nowhere")
    assert sqlite.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_the_stage_gives_its_rows_and_their_number(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse)
    params = Extract.model_validate({"source": {"connection": "warehouse", "table": "t"}})
    outcome = stage.run(call(tmp_path, params, None, "r"), params, Store(str(tmp_path / "store")))
    assert outcome.metrics == {"rows": 1464.0}
