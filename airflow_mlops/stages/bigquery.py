"""BigQuery: what a query gives, read as a stream of Arrow batches in bounded memory.

A dry run tells the columns and the bytes first, so what cannot be read or costs too much is refused before it is paid.
One query reads all windows of a run: they show the tables at one instant, and a table that is not partitioned is
scanned once. Its result lies in a table of the job's own for a day. The job's name follows from the run, so a retry
finds it and reads the very same rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.connection import Connection
from airflow_mlops.call.wire import digest_of
from airflow_mlops.errors import DataError, DataNotFoundError
from airflow_mlops.google.auth import credentials_of
from airflow_mlops.spec.base import format_size, parse_size
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.bigquery_errors import patience, speaking
from airflow_mlops.stages.bigquery_rows import Exported, Result, remove
from airflow_mlops.stages.bigquery_statement import Field, Statement, bounds, field_of, select, span, windowed, within

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, QueryJob, QueryJobConfig

log = logging.getLogger(__name__)

STORAGE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERYSTORAGE"
"""The environment variable that names another endpoint of the Storage Read API."""
EXPORT_FROM = 8 << 30
"""From so many processed bytes on rows go through files, where the store is on ``gs://``."""
_PRICE = 6.25
_KEPT = timedelta(hours=23)
_TRIES = 20


class BigQuery:
    """BigQuery through a connection.

    Args:
        connection: of type ``google_cloud_platform``.
        windows: those that will be asked for, oldest first.
        run: what the work is for, the same in a retry. Default: every query is a new one.
        store: the artifact store's root; rows can be exported where it is on ``gs://``.
    """

    def __init__(
        self, connection: Connection, windows: Sequence[Window] = (), run: str | None = None, store: str | None = None
    ) -> None:
        self.connection, self.windows, self.run, self.store = connection, tuple(windows), run, store or ""
        self._source: SqlSource | None = None
        self._planned: dict[Window | None, Statement] = {}
        self._jobs: dict[Statement, QueryJob] = {}
        self._exports = False
        self._folders: list[str] = []

    def query(self, source: SqlSource, time: str | None, window: Window | None) -> Result | Exported:
        """Start the query that reads a window, or find the one that reads it with others; see `Database`."""
        if window not in self._planned:
            self._plan(source, time, window)
        statement = self._planned[window]
        if self._exports:
            return Exported(self._export(statement), statement.schema)
        if statement not in self._jobs:
            self._jobs[statement] = self.start(statement)
        shared = sum(each == statement for each in self._planned.values()) > 1
        kind = next((field.type for field in statement.fields if field.name == time), "")
        condition = within(kind, time, window) if time and window and shared else ""
        return self.rows(self._jobs[statement], statement, condition)

    def close(self) -> None:
        """End the connections; what was exported is removed."""
        for folder in self._folders:
            remove(folder)
        opened = vars(self)
        if "client" in opened:
            self.client.close()
        if "reader" in opened:
            self.reader.transport.close()

    # Before anything is paid

    def _plan(self, source: SqlSource, time: str | None, window: Window | None) -> None:
        """Ask what the queries for all windows would give and process, and refuse what is too much."""
        self._source = source
        windows: list[Window | None] = [*self.windows] if window in self.windows else [window]
        fields = self.fields(source, window)
        together = time is not None and not source.names_window and len(windows) > 1
        spans = [span(windows)] if together else windows
        statements = [self.dry(windowed(source, fields, time, each)) for each in spans]
        total = self.allow(statements)
        on_bucket = self.store.startswith("gs://")
        self._exports = on_bucket and total > EXPORT_FROM if source.export is None else source.export
        if self._exports and not on_bucket:
            raise DataError(
                "rows of BigQuery can be exported to a bucket only, and the store is on none",
                fix="declare google.bucket, or leave data.source.export out",
            )
        if self._exports and together:
            # A window's files are its own, so each has a query of its own.
            instant = self._instant(source)
            statements = [self.dry(windowed(source, fields, time, each, instant)) for each in windows]
            self.allow(statements)
        elif together:
            statements *= len(windows)
        self._planned = dict(zip(windows, statements, strict=True))

    def fields(self, source: SqlSource, window: Window | None) -> tuple[Field, ...]:
        """The columns of a source, by a dry run.

        Raises:
            SchemaError: when one is of a type that no model can use; it says how to cast it.
        """
        self._source = source
        if source.names_window and window is None:
            raise DataNotFoundError(f"{source} names a window, and the run has none", fix="give the run a window")
        return self.dry(Statement(select(source), bounds(source, window))).fields

    def dry(self, statement: Statement) -> Statement:
        """The same statement with its columns, the bytes that it would process and where it would run."""
        config = self._config(statement)
        config.dry_run = True
        with self.speaking():
            job = self.client.query(
                statement.text, config, location=self._location, retry=patience(), job_retry=None, timeout=60
            )
        fields = tuple(field_of(each, self._source) for each in job.schema or ())
        return replace(statement, fields=fields, bytes=int(job.total_bytes_processed or 0), location=job.location)

    def allow(self, statements: Sequence[Statement]) -> int:
        """Say what queries will process, and what that may cost; the bytes.

        Raises:
            DataError: when they are more than the source allows.
        """
        total, limit = sum(each.bytes for each in statements), self._limit
        price = f"{format_size(total)}, at most ${total / 2**40 * _PRICE:,.2f} at the list price"
        if total > limit:
            raise DataError(
                f"reading {self._source} would process {price}; max_bytes allows {format_size(limit)}",
                fix="read less (a partitioned table with data.time, fewer columns in a query, fewer windows), or raise "
                "data.source.max_bytes",
            )
        log.info("BigQuery: %s processes %s", self._source, price)
        return total

    def _instant(self, source: SqlSource) -> datetime | None:
        """An instant at which several queries can read a table, by BigQuery's own clock; None for a view or query."""
        if source.table is None:
            return None
        with self.speaking():
            if self.client.get_table(self._path(source.table), retry=patience()).table_type != "TABLE":
                return None
            job = self.client.query("SELECT 1", location=self._location, retry=patience())
            job.result(max_results=0)
            return datetime.fromtimestamp(job.started.timestamp(), UTC) if job.started else None

    def _path(self, table: str) -> str:
        return table if table.count(".") > 1 else f"{self.project}.{table}"

    # What is paid

    def start(self, statement: Statement) -> QueryJob:
        """Run a query to its end, or find the one that an earlier try of this run has started."""
        from google.api_core.exceptions import Conflict

        asked = [self.run, self.project, statement.text, [list(map(str, each)) for each in statement.parameters]]
        name = f"airflow-mlops-{digest_of(asked)[7:39]}" if self.run else None
        config = self._config(statement)
        config.maximum_bytes_billed = self._limit
        with self.speaking():
            for number in range(_TRIES):
                job_id = name and f"{name}-{number}"
                try:
                    started = self.client.query(
                        statement.text,
                        config,
                        job_id=job_id,
                        location=statement.location,
                        retry=patience(),
                        job_retry=None,
                        timeout=60,
                    )
                except Conflict:
                    earlier: Any = self.client.get_job(str(job_id), location=statement.location, retry=patience())
                    lost = earlier.ended is not None and datetime.now(UTC) - earlier.ended > _KEPT
                    if earlier.error_result or lost:
                        continue
                    started = earlier
                    log.info("BigQuery: the job %s of an earlier try is found again", job_id)
                started.result(max_results=0, retry=patience(), job_retry=None)
                return started
        raise DataError(f"the query of {self._source} failed {_TRIES} times in this run", fix="start a new run")

    def rows(self, job: QueryJob, statement: Statement, condition: str = "") -> Result:
        """The rows that a job came to; those only that meet a condition."""
        table = job.destination.path.lstrip("/")
        return Result(self.reader, f"projects/{self.project}", table, condition, statement.schema, self.speaking)

    def _export(self, statement: Statement) -> str:
        """Write a query's rows as Parquet files to the store's bucket; the folder, which is gone after `close`."""
        name = digest_of([self.run or os.urandom(8).hex(), statement.text, str(statement.parameters)])[7:39]
        folder = f"{self.store.rstrip('/')}/exports/{name}"
        options = f"uri = '{folder}/*.parquet', format = 'PARQUET', compression = 'ZSTD', overwrite = true"
        self._folders.append(folder)
        self.start(replace(statement, text=f"EXPORT DATA OPTIONS ({options}) AS\n{statement.text}"))
        return folder

    def _config(self, statement: Statement) -> QueryJobConfig:
        from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

        parameters = [ScalarQueryParameter(*each) for each in statement.parameters]
        return QueryJobConfig(query_parameters=parameters)

    # Who asks, and where

    @property
    def _limit(self) -> int:
        assert self._source is not None  # noqa: S101
        return parse_size(self._source.max_bytes)

    @property
    def _location(self) -> str | None:
        return self._source.location if self._source else None

    @cached_property
    def _credentials(self) -> Any:
        return credentials_of(self.connection.id)

    @cached_property
    def project(self) -> str:
        """The project that queries run in."""
        extra = self.connection.extra
        found = (
            (self._source.project if self._source else None)
            or extra.get("project")
            or extra.get("extra__google_cloud_platform__project")
            or getattr(self._credentials, "project_id", None)
            or os.environ.get("GOOGLE_CLOUD_PROJECT")
        )
        if not found:
            raise DataError(
                f"nobody says which project the queries of {self._source} are paid by",
                fix="declare google.project or data.source.project, or give the connection a project",
            )
        return str(found)

    @cached_property
    def client(self) -> Client:
        """The client of the REST API."""
        from google.cloud.bigquery import Client

        return Client(self.project, self._credentials)

    @cached_property
    def reader(self) -> Any:
        """The client of the Storage Read API."""
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient

        override = os.environ.get(STORAGE)
        if override is None:
            return BigQueryReadClient(credentials=self._credentials)
        host = override.rstrip("/").rpartition("/")[2]
        if override.startswith("https://"):
            return BigQueryReadClient(credentials=self._credentials, client_options={"api_endpoint": host})
        import grpc
        from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

        return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=grpc.insecure_channel(host)))

    def speaking(self) -> AbstractContextManager[None]:
        """Turn the clients' errors into ours."""
        return speaking(self.connection, str(self._source))
