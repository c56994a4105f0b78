"""SQL databases, read as a stream of Arrow tables in bounded memory, in one read-only transaction.

PostgreSQL speaks through ADBC and a server-side cursor; SQLite through Python's own driver; BigQuery has a module of
its own. The window is bound as two
parameters, instants in UTC; no value is ever written into the text of a query.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow as pa

from airflow_mlops.call.connection import Connection
from airflow_mlops.errors import DataError, DataNotFoundError, MlopsError, SchemaError, SourceUnreachableError
from airflow_mlops.spec.source import SqlSource, numbered, quoted
from airflow_mlops.spec.window import Window

BATCH_ROWS = 16_384
"""The rows asked for at a time."""
BIGQUERY = "google_cloud_platform"
"""The type of connection that leads to BigQuery."""

# SQLSTATE classes of what passes by itself: connections, resources, deadlocks, and somebody who intervened.
_PASSES = ("08", "40", "53", "55", "57")
# What PostgreSQL says, without a SQLSTATE, to somebody it will not let in the next time either.
_REFUSED = ("authentication failed", "does not exist", "pg_hba.conf", "no password supplied", "certificate")
# What libpq takes from a connection's extra fields; others are for other tools.
_LIBPQ = (
    *("application_name", "channel_binding", "connect_timeout", "gssencmode", "keepalives", "keepalives_count"),
    *("keepalives_idle", "keepalives_interval", "options", "passfile", "service", "sslcert", "sslcrl", "sslkey"),
    *("sslmode", "sslpassword", "sslrootcert", "target_session_attrs", "tcp_user_timeout"),
)


class Rows(Protocol):
    """What a query gives."""

    schema: pa.Schema

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        """The rows in batches, once."""


class Database(Protocol):
    """An open database."""

    def query(self, source: SqlSource, time: str | None, window: Window | None) -> Rows:
        """Start a query; the database itself leaves out what is not in the window."""

    def close(self) -> None:
        """End the transaction and the connection."""


@contextmanager
def open_database(
    connection: Connection, windows: Sequence[Window] = (), run: str | None = None, store: str | None = None
) -> Iterator[Database]:
    """Open the database of a connection for as long as the scope lasts.

    Args:
        connection: of a type that can be read.
        windows: those that will be asked for, oldest first. BigQuery reads them in one query.
        run: what the work is for, the same in a retry: BigQuery then finds its query again.
        store: the artifact store's root, where BigQuery may export to.

    Raises:
        DataError: when there is no way to read that type, or the database lets nobody in.
        SourceUnreachableError: when it does not answer.
    """
    kinds: dict[str, type[_Postgres] | type[_Sqlite]] = {"postgres": _Postgres, "sqlite": _Sqlite}
    database: Database
    if connection.type == BIGQUERY:
        from airflow_mlops.stages.bigquery import BigQuery

        database = BigQuery(connection, windows, run, store)
    elif connection.type in kinds:
        database = kinds[connection.type](connection)
    else:
        raise DataError(
            f"the connection {connection.id!r} is of type {connection.type!r}, which cannot be read",
            allowed=", ".join([*kinds, BIGQUERY]),
        )
    try:
        yield database
    finally:
        database.close()


def _windowed(source: SqlSource, time: str | None, window: Window | None, column: str = "{}", value: str = "{}") -> str:
    """The query that reads one window; ``column`` and ``value`` say how the database compares the two."""
    if source.names_window and window is None:
        raise DataNotFoundError(f"{source} names a window, and the run has none", fix="give the run a window")
    select = source.select
    if time is None or window is None:
        return select
    at, start, end = column.format(f"rows_of_source.{quoted(time)}"), value.format(":start"), value.format(":end")
    # On lines of its own, so that a comment at the query's end takes nothing with it.
    return f"SELECT * FROM (\n{select}\n) AS rows_of_source WHERE {at} >= {start} AND {at} < {end}"  # noqa: S608


class _Postgres:
    def __init__(self, connection: Connection) -> None:
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError as error:
            raise DataError(
                f"PostgreSQL cannot be read here: {error}", fix="pip install 'airflow-mlops[postgres]'"
            ) from error
        self.connection = connection
        with self.speaking():
            self._session = dbapi.connect(_conninfo(connection))
        try:
            # A cursor that is read to its end is planned as one; and naive times are compared as UTC.
            for setting in (
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                "SET LOCAL TIME ZONE 'UTC'",
                "SET LOCAL cursor_tuple_fraction = 1",
            ):
                self.execute(setting)
        except MlopsError:
            self.close()
            raise

    def execute(self, text: str, values: tuple[datetime, ...] = ()) -> pa.Table:
        with self.speaking(), self._session.cursor(adbc_stmt_kwargs={"adbc.postgresql.use_copy": "false"}) as cursor:
            cursor.execute(text, values or None)
            return cursor.fetch_arrow_table()

    def query(self, source: SqlSource, time: str | None, window: Window | None) -> Rows:
        text, names = numbered(_windowed(source, time, window))
        bounds = {"start": window.start, "end": window.end} if window else {}
        self.execute("CLOSE ALL")
        # Without a cursor the driver would hold all rows of a query with parameters at once.
        self.execute(f"DECLARE rows_of_source NO SCROLL CURSOR FOR {text}", tuple(bounds[name] for name in names))
        return _PostgresRows(self)

    def close(self) -> None:
        # A connection that broke cannot be closed in order.
        with suppress(Exception):
            self._session.rollback()
        with suppress(Exception):
            self._session.close()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn the driver's errors into ours, without the password."""
        from adbc_driver_manager import AdbcStatusCode, Error

        try:
            yield
        except Error as error:
            words = self.connection.scrub(str(error).split("\n\nQuery was:", maxsplit=1)[0].strip())
            state = error.sqlstate or ""
            lost = error.status_code in (AdbcStatusCode.IO, AdbcStatusCode.TIMEOUT) and not state
            what = f"the database of the connection {self.connection.id!r}"
            # Nothing of the driver's own error goes on: its text may hold the password.
            if state.startswith(_PASSES) or (lost and not any(each in words for each in _REFUSED)):
                raise SourceUnreachableError(
                    f"{what} does not answer or broke off: {words}",
                    fix="see that it runs; a retry reads anew",
                ) from None
            if lost:
                raise DataError(f"{what} lets nobody in: {words}", fix="correct the Airflow connection") from None
            raise DataError(f"{what} refuses the query: {words}", fix="correct data.source") from None


class _PostgresRows:
    def __init__(self, database: _Postgres) -> None:
        self._database = database
        self._first = self._fetch()
        self.schema = self._first.schema

    def _fetch(self) -> pa.Table:
        return _plain(self._database.execute(f"FETCH {BATCH_ROWS} FROM rows_of_source"))

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        table = self._first
        while table.num_rows:
            yield table
            table = self._fetch()


def _conninfo(connection: Connection) -> str:
    """The connection in libpq's own form, where no character of a password means anything."""
    words: dict[str, Any] = {
        "connect_timeout": 30,
        # A peer that is gone without a word is noticed within two minutes, and not after the system's two hours.
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 6,
        "application_name": "airflow-mlops",
        **{key: value for key, value in connection.extra.items() if key in _LIBPQ},
        "host": connection.host,
        "port": connection.port,
        "user": connection.login,
        "password": connection.password,
        "dbname": connection.schema,
    }
    written = {
        key: str(value).replace("\\", "\\\\").replace("'", "\\'")
        for key, value in words.items()
        if value not in (None, "")
    }
    return " ".join(f"{key}='{value}'" for key, value in written.items())


def _plain(table: pa.Table) -> pa.Table:
    """The database's own types as those that a model can be trained on."""
    columns = [_plain_column(field, column) for field, column in zip(table.schema, table.columns, strict=True)]
    return pa.table(columns, names=table.column_names)


def _plain_column(field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = field.type
    name = (field.metadata or {}).get(b"POSTGRESQL:type", str(kind).encode()).decode()
    if isinstance(kind, pa.BaseExtensionType):
        stored = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        if name == "numeric":
            return stored.cast(pa.float64())
        if name == "uuid":
            return pa.chunked_array(
                [[value and str(uuid.UUID(bytes=value)) for value in stored.to_pylist()]], pa.string()
            )
        if pa.types.is_string(stored.type):
            return stored
    elif name != "money" and not pa.types.is_interval(kind):
        return column
    raise SchemaError(
        f"the column {field.name!r} is of the database's type {name}",
        fix=f"cast it in the query, {field.name}::text say, or leave it out",
    )


class _Sqlite:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.path = connection.host or connection.schema
        if not os.path.exists(self.path):
            raise DataError(f"there is no database {self.path}", fix=f"correct the connection {connection.id!r}")
        with self.speaking():
            self._session = sqlite3.connect(f"file:{quote(self.path)}?mode=ro", uri=True, isolation_level=None)
            self._session.execute("BEGIN")

    def query(self, source: SqlSource, time: str | None, window: Window | None) -> Rows:
        # Times are texts there, with or without a zone; datetime() brings them to UTC in one form.
        text = _windowed(source, time, window, column="datetime({})", value="datetime({})")
        bounds = {"start": window.start, "end": window.end} if window else {}
        return _SqliteRows(self, text, {name: at.strftime("%Y-%m-%d %H:%M:%S") for name, at in bounds.items()}, time)

    def execute(self, text: str, values: dict[str, str]) -> sqlite3.Cursor:
        with self.speaking():
            return self._session.execute(text, values)

    def close(self) -> None:
        self._session.close()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            what = f"the database {self.path}"
            if error.sqlite_errorname in ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR"):
                raise SourceUnreachableError(f"{what} does not answer: {error}", fix="see who holds it") from error
            raise DataError(f"{what} refuses the query: {error}", fix="correct data.source") from error


class _SqliteRows:
    """Rows whose types SQLite does not declare: the database is asked first what each column holds."""

    _KINDS = {  # noqa: RUF012
        frozenset[str](): pa.null(),
        frozenset({"integer"}): pa.int64(),
        frozenset({"real"}): pa.float64(),
        frozenset({"integer", "real"}): pa.float64(),
        frozenset({"text"}): pa.string(),
        frozenset({"blob"}): pa.binary(),
    }

    def __init__(self, database: _Sqlite, text: str, values: dict[str, str], time: str | None) -> None:
        self._database, self._text, self._values, self._time = database, text, values, time
        names = [column[0] for column in database.execute(f"SELECT * FROM (\n{text}\n) LIMIT 0", values).description]  # noqa: S608
        asked = ", ".join(f"group_concat(DISTINCT typeof({quoted(name)}))" for name in names)
        held = database.execute(f"SELECT {asked} FROM (\n{text}\n)", values).fetchone()  # noqa: S608
        self.schema = pa.schema([self._field(name, kinds, time) for name, kinds in zip(names, held, strict=True)])

    def _field(self, name: str, held: str | None, time: str | None) -> pa.Field:
        kinds = frozenset((held or "").split(",")) - {"null", ""}
        if kinds not in self._KINDS:
            raise SchemaError(f"the column {name!r} holds {' and '.join(sorted(kinds))}", fix="cast it in the query")
        kind = self._KINDS[kinds]
        return pa.field(name, pa.timestamp("us") if name == time and kind in (pa.string(), pa.null()) else kind)

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        cursor = self._database.execute(self._text, self._values)
        while True:
            with self._database.speaking():
                rows = cursor.fetchmany(BATCH_ROWS)
            if not rows:
                return
            columns = [
                [_instant(value, field.name) for value in values] if pa.types.is_timestamp(field.type) else values
                for field, values in zip(self.schema, zip(*rows, strict=True), strict=True)
            ]
            yield pa.table(
                [pa.array(values, field.type) for field, values in zip(self.schema, columns, strict=True)],
                schema=self.schema,
            )


def _instant(value: str | None, name: str) -> datetime | None:
    """A time as SQLite keeps it, as an instant in UTC without a zone."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError as error:
        raise SchemaError(f"the time column {name!r} holds {value!r}", allowed="ISO dates and times") from error
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
