"""BigQuery: its REST API for jobs and tables, and its Storage Read API by gRPC, over DuckDB.

Google's own clients talk to it unmodified. Every statement goes through Google's own analyzer first (`googlesql`),
which says what BigQuery would refuse and the types of what comes out; sqlglot then translates it for DuckDB. Bytes are
counted by BigQuery's own sizes of types, over the columns that a statement names.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import duckdb
import grpc
import pyarrow as pa
import sqlglot
from google.cloud.bigquery_storage_v1 import types
from sqlglot import exp

from tests.loopback.gcs import PROJECT
from tests.loopback.googlesql import Column, GoogleSql, Refused

LOCATION = "EU"
_BATCH = 1000
_ARROW = {
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "JSON": pa.string(),
    "GEOGRAPHY": pa.string(),
}
_NAMES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
_SIZES = {"BOOL": 1, "NUMERIC": 16, "BIGNUMERIC": 32}
_QUERY = {"query", "useLegacySql", "queryParameters", "parameterMode", "maximumBytesBilled", "useQueryCache"}


class BigQueryError(Exception):
    """What BigQuery answers instead: the reason, a status of HTTP and a sentence."""

    def __init__(self, reason: str, code: int, message: str) -> None:
        super().__init__(message)
        self.reason, self.code, self.message = reason, code, message

    def body(self) -> dict[str, Any]:
        detail = {"reason": self.reason, "message": self.message, "domain": "global"}
        return {"error": {"code": self.code, "message": self.message, "errors": [detail]}}


class _Fault:
    def __init__(self, asked: str, times: int, error: Any, after: int) -> None:
        self.asked, self.times, self.error, self.after = asked, times, error, after


class Asked(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    body: Any


class BigQuery:
    """One project's BigQuery, in one location."""

    def __init__(self, analyzer: GoogleSql) -> None:
        self.analyzer = analyzer
        self._duckdb = duckdb.connect()
        self._duckdb.execute("SET TimeZone = 'UTC'")
        self._lock = threading.Lock()
        self.tables: dict[str, tuple[Column, ...]] = {}
        self.environment: dict[str, str] = {}
        """What clients look at to get here."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for name in list(self.tables):
            self._duckdb.execute(f"DROP TABLE IF EXISTS {_own(name)}")
        self.tables.clear()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, pa.Table] = {}
        self.asked: list[Asked] = []
        self.statements: list[str] = []
        """The statements that were run, without those of dry runs."""
        self.sent = 0
        """The bytes of rows that left by the Storage Read API."""
        self._faults: list[_Fault] = []

    def load(self, name: str, rows: pa.Table, **kinds: str) -> None:
        """Make a table, such as ``shop.t``, of these rows; the types follow from Arrow's unless they are given."""
        columns = tuple(Column(field.name, kinds.get(field.name, _kind(field.type))) for field in rows.schema)
        with self._lock:
            self._duckdb.execute(f'CREATE SCHEMA IF NOT EXISTS "{name.partition(".")[0]}"')
            self._duckdb.register("rows_given", rows)
            self._duckdb.execute(f"CREATE OR REPLACE TABLE {_own(name)} AS SELECT * FROM rows_given")
            self._duckdb.unregister("rows_given")
            self.tables[name] = columns

    def fail(self, asked: str, error: Any, *, times: int = 1, after: int = 0) -> None:
        """Fail the next requests that hold this text.

        Args:
            asked: a part of ``METHOD PATH``, or ``CreateReadSession`` or ``ReadRows``.
            error: a `BigQueryError`, or of gRPC the status and the sentence.
            times: how many of them.
            after: of ``ReadRows``, after how many batches.
        """
        self._faults.append(_Fault(asked, times, error, after))

    def fault(self, asked: str) -> _Fault | None:
        """The fault that this request meets."""
        with self._lock:
            for each in self._faults:
                if each.times and each.asked in asked:
                    each.times -= 1
                    return each
        return None

    # Statements

    def estimate(self, tree: exp.Expression) -> int:
        """The bytes that a statement processes: whole columns of the tables that it names."""
        named = {each.name for each in tree.find_all(exp.Column)} | {
            each.name for each in tree.find_all(exp.Identifier)
        }
        every = any(isinstance(each.parent, exp.Select) for each in tree.find_all(exp.Star))
        total = 0
        for name in self._tables_of(tree):
            for column in self.tables[name]:
                if every or column.name in named:
                    size = _SIZES.get(column.type, 8)
                    asked = f"count(*) * {size}"
                    if column.type in ("STRING", "BYTES", "JSON", "GEOGRAPHY"):
                        length = "octet_length" if column.type == "BYTES" else "strlen"
                        asked = f'sum(2 + coalesce({length}("{column.name}"), 0))'
                total += int(self._duckdb.execute(f"SELECT {asked} FROM {_own(name)}").fetchall()[0][0] or 0)
        return total

    def _tables_of(self, tree: exp.Expression) -> list[str]:
        within = {each.alias for each in tree.find_all(exp.CTE)}
        found = {_path(each) for each in tree.find_all(exp.Table)}
        names = []
        for each in sorted(found - within):
            name = each.removeprefix(f"{PROJECT}.")
            if name not in self.tables:
                dataset = name.partition(".")[0]
                if not any(table.startswith(dataset + ".") for table in self.tables):
                    message = f"Not found: Dataset {PROJECT}:{dataset} was not found in location {LOCATION}"
                    raise BigQueryError("notFound", 404, message)
                message = f"Not found: Table {PROJECT}:{name} was not found in location {LOCATION}"
                raise BigQueryError("notFound", 404, message)
            names.append(name)
        return names

    def prepare(self, sql: str, parameters: dict[str, tuple[str, str]]) -> tuple[exp.Expression, tuple[Column, ...]]:
        """Check a statement as BigQuery does: its tree, and the columns it gives."""
        try:
            tree = sqlglot.parse_one(sql, read="bigquery")
            self._tables_of(tree)
        except sqlglot.ParseError as error:
            raise BigQueryError("invalidQuery", 400, f"Syntax error: {error}") from error
        catalog = {form: columns for name, columns in self.tables.items() for form in (name, f"{PROJECT}.{name}")}
        try:
            with self._lock:
                columns = self.analyzer.analyze(sql, catalog, {name: kind for name, (kind, _) in parameters.items()})
        except Refused as error:
            raise BigQueryError("invalidQuery", 400, str(error)) from error
        return tree, columns

    def execute(
        self, tree: exp.Expression, columns: Sequence[Column], parameters: dict[str, tuple[str, str]]
    ) -> pa.Table:
        """The rows of a query, with the types that the analyzer told."""

        def bound(node: exp.Expression) -> exp.Expression:
            if isinstance(node, exp.Limit) and not isinstance(node.parent, exp.Query):
                return node.this  # of an aggregate, which DuckDB does not know
            if isinstance(node, exp.Parameter):
                kind, value = parameters[node.name]
                return exp.cast(exp.Literal.string(value), kind, dialect="bigquery")
            return node

        for table in tree.find_all(exp.Table):
            name = _path(table).removeprefix(f"{PROJECT}.")
            if name in self.tables:
                alias = table.args.get("alias")
                table.replace(exp.to_table(_own(name), alias=alias))
        text = tree.transform(bound).sql("duckdb")
        with self._lock:
            try:
                rows = self._duckdb.sql(text).to_arrow_table()
            except duckdb.Error as error:
                raise BigQueryError("invalidQuery", 400, f"{error}\n{text}") from error
        fields = [
            (column.name, _ARROW.get(column.type, rows.schema.field(index).type))
            for index, column in enumerate(columns)
        ]
        return rows.rename_columns([name for name, _ in fields]).cast(pa.schema(fields), safe=False)

    # REST

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Answer a request."""
        self.asked.append(Asked(method, path, body))
        met = self.fault(f"{method} /{path}")
        if met and not met.after:
            raise met.error
        parts = path.split("/")
        match (method, *parts[4:]):
            case ("POST", "jobs"):
                found = self.insert(body)
            case ("GET", "jobs", job):
                found = self._job(job, query)
            case ("GET", "queries", job):
                found = self._results(job, query)
            case ("GET", "datasets", dataset, "tables", table):
                found = self._table(f"{dataset}.{table}")
            case _:
                raise BigQueryError("notFound", 404, f"the stand-in has no {method} {path}")
        if met:
            raise met.error
        return found

    def insert(self, body: dict[str, Any]) -> dict[str, Any]:
        reference = dict(body.get("jobReference", {}))
        name = reference.setdefault("jobId", uuid.uuid4().hex)
        configuration = body["configuration"]
        strange = set(configuration) - {"query", "dryRun", "labels", "jobTimeoutMs"}
        strange |= set(configuration["query"]) - _QUERY
        if strange:
            raise BigQueryError("invalid", 400, f"the stand-in does not know {sorted(strange)}")
        if reference.get("location", LOCATION) != LOCATION:
            dataset = f"Dataset {PROJECT}:{next(iter(self.tables), 'none').partition('.')[0]}"
            message = f"Not found: {dataset} was not found in location {reference['location']}"
            raise BigQueryError("notFound", 404, message)
        reference["location"] = LOCATION
        if name in self.jobs:
            raise BigQueryError("duplicate", 409, f"Already Exists: Job {PROJECT}:{LOCATION}.{name}")
        asked = configuration["query"]
        parameters = {
            each["name"]: (each["parameterType"]["type"], each["parameterValue"]["value"])
            for each in asked.get("queryParameters", ())
        }
        now = str(int(datetime.now(UTC).timestamp() * 1000))
        statistics: dict[str, Any] = {"creationTime": now, "startTime": now, "endTime": now}
        job = {
            "kind": "bigquery#job",
            "jobReference": reference,
            "configuration": {**configuration, "jobType": "QUERY"},
            "status": {"state": "DONE"},
            "statistics": statistics,
        }
        tree, columns = self.prepare(asked["query"], parameters)
        size = self.estimate(tree)
        statistics["totalBytesProcessed"] = str(size)
        schema = {"fields": [_field(each) for each in columns]}
        statistics["query"] = {"totalBytesProcessed": str(size), "schema": schema, "statementType": "SELECT"}
        if configuration.get("dryRun"):
            return job
        self.jobs[name] = job
        if size > int(asked.get("maximumBytesBilled", size)):
            message = (
                f"Query exceeded limit for bytes billed: {asked['maximumBytesBilled']}. {size} or higher required."
            )
            job["status"] |= {"errorResult": {"reason": "bytesBilledLimitExceeded", "message": message}}
            return job
        self.statements.append(asked["query"])
        met = self.fault("the query")
        if met:
            error = {"reason": met.error.reason, "message": met.error.message}
            job["status"] |= {"errorResult": error, "errors": [error]}
            return job
        if isinstance(tree, exp.Export):
            self._export(asked["query"], tree, columns, parameters)
            return job
        self.results[f"_anon.anon{name}"] = self.execute(tree, columns, parameters)
        table = {"projectId": PROJECT, "datasetId": "_anon", "tableId": f"anon{name}"}
        job["configuration"]["query"] = {**asked, "destinationTable": table}
        return job

    def _export(self, sql: str, tree: Any, columns: Sequence[Column], parameters: dict[str, tuple[str, str]]) -> None:
        import gcsfs
        import pyarrow.parquet as pq

        options = dict(re.findall(r"(\w+) = '([^']*)'", sql.partition(" AS\n")[0]))
        rows = self.execute(tree.this, columns, parameters)
        system = gcsfs.GCSFileSystem(project=PROJECT, token="anon")
        half = max(1, rows.num_rows // 2)
        for number, start in enumerate(range(0, max(1, rows.num_rows), half)):
            with system.open(options["uri"].replace("*", f"{number:012}"), "wb") as file:
                pq.write_table(rows.slice(start, half), file)

    def _job(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        if name not in self.jobs or query.get("location", LOCATION) != LOCATION:
            raise BigQueryError("notFound", 404, f"Not found: Job {PROJECT}:{name}")
        return self.jobs[name]

    def _results(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        job = self._job(name, query)
        error = job["status"].get("errorResult")
        if error:
            codes = {"accessDenied": 403, "quotaExceeded": 403, "responseTooLarge": 403, "rateLimitExceeded": 403}
            codes |= {"backendError": 503}
            raise BigQueryError(error["reason"], codes.get(error["reason"], 400), error["message"])
        statistics = job["statistics"]["query"]
        rows = self.results.get(f"_anon.anon{name}")
        return {
            "kind": "bigquery#getQueryResultsResponse",
            "jobReference": job["jobReference"],
            "jobComplete": True,
            "schema": statistics["schema"],
            "totalRows": str(rows.num_rows if rows is not None else 0),
            "totalBytesProcessed": statistics["totalBytesProcessed"],
        }

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self.tables:
            raise BigQueryError("notFound", 404, f"Not found: Table {PROJECT}:{name}")
        dataset, _, table = name.partition(".")
        return {
            "kind": "bigquery#table",
            "tableReference": {"projectId": PROJECT, "datasetId": dataset, "tableId": table},
            "type": "TABLE",
            "schema": {"fields": [_field(each) for each in self.tables[name]]},
        }

    # The Storage Read API

    def create_read_session(self, request: Any, context: grpc.ServicerContext) -> Any:
        met = self.fault("CreateReadSession")
        if met:
            context.abort(*met.error)
        asked = request.read_session
        name = ".".join(asked.table.split("/")[i] for i in (3, 5))
        if name not in self.results:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Table {PROJECT}:{name}")
        rows = self.results[name]
        if asked.read_options.row_restriction:
            self._duckdb.register("rows_given", rows)
            where = sqlglot.parse_one(
                f"SELECT * FROM rows_given WHERE {asked.read_options.row_restriction}", "bigquery"
            )
            with self._lock:
                rows = self._duckdb.sql(where.sql("duckdb")).to_arrow_table().cast(rows.schema)
        session = uuid.uuid4().hex
        count = max(1, min(request.max_stream_count or 4, rows.num_rows // _BATCH or 1))
        size = -(-rows.num_rows // count)
        parts = [rows.slice(number * size, size) for number in range(count)] if rows.num_rows else []
        path = f"projects/{PROJECT}/locations/{LOCATION}/sessions/{session}"
        for number, part in enumerate(parts):
            self.results[f"{path}/streams/{number}"] = part.combine_chunks()
        return types.ReadSession(
            name=path,
            table=asked.table,
            data_format=types.DataFormat.ARROW,
            arrow_schema=types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes()),
            streams=[types.ReadStream(name=f"{path}/streams/{number}") for number in range(len(parts))],
        )

    def read_rows(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        met = self.fault("ReadRows")
        rows = self.results[request.read_stream].slice(request.offset)
        for number, batch in enumerate(rows.to_batches(max_chunksize=_BATCH)):
            if met and number >= met.after:
                context.abort(*met.error)
            data = _compressed(batch)
            self.sent += len(data)
            yield types.ReadRowsResponse(
                arrow_record_batch=types.ArrowRecordBatch(serialized_record_batch=data, row_count=batch.num_rows),
                row_count=batch.num_rows,
            )
        if met and not rows.num_rows:
            context.abort(*met.error)


def _compressed(batch: pa.RecordBatch) -> bytes:
    """A batch as the clients here ask for it."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    *_, message = pa.ipc.MessageReader.open_stream(stream.getvalue())
    return bytes(message.serialize().to_pybytes())


def _path(table: exp.Table) -> str:
    """A table's name as the statement gives it."""
    return ".".join(part.name for part in table.parts)


def _own(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_decimal(kind):
        return "NUMERIC"
    if pa.types.is_struct(kind) or pa.types.is_list(kind):
        return "STRUCT" if pa.types.is_struct(kind) else "ARRAY"
    return next(word for word, each in _ARROW.items() if each == kind)


def _field(column: Column) -> dict[str, Any]:
    if column.type == "ARRAY":
        return {"name": column.name, "type": "INTEGER", "mode": "REPEATED"}
    inner = {"fields": [{"name": "a", "type": "INTEGER", "mode": "NULLABLE"}]} if column.type == "STRUCT" else {}
    return {"name": column.name, "type": _NAMES.get(column.type, column.type), "mode": "NULLABLE", **inner}


class _Handler(BaseHTTPRequestHandler):
    stand_in: BigQuery
    protocol_version = "HTTP/1.1"
    # Without this the kernel waits for the client's acknowledgement between header and body.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        code = 200
        try:
            query = dict(parse_qsl(parts.query))
            body = self.stand_in.answer(self.command, parts.path.lstrip("/"), query, json.loads(text) if text else None)
        except BigQueryError as error:
            code, body = error.code, error.body()
        except Exception as error:
            code, body = 500, BigQueryError("stand-in", 500, repr(error)).body()
        answer = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _grpc(stand_in: BigQuery) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    name = "google.cloud.bigquery.storage.v1.BigQueryRead"
    handlers = {
        "CreateReadSession": grpc.unary_unary_rpc_method_handler(
            stand_in.create_read_session,
            types.CreateReadSessionRequest.deserialize,
            types.ReadSession.serialize,
        ),
        "ReadRows": grpc.unary_stream_rpc_method_handler(
            stand_in.read_rows, types.ReadRowsRequest.deserialize, types.ReadRowsResponse.serialize
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


@contextmanager
def serving() -> Iterator[BigQuery]:
    """A stand-in on free ports."""
    stand_in = BigQuery(GoogleSql())
    rest = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": stand_in}))
    rest.daemon_threads = True
    threading.Thread(target=rest.serve_forever, args=(0.05,), daemon=True).start()
    rows, port = _grpc(stand_in)
    extra = {"is_anonymous": True, "project": PROJECT}
    stand_in.environment = {
        "BIGQUERY_EMULATOR_HOST": f"http://127.0.0.1:{rest.server_port}",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERYSTORAGE": f"http://127.0.0.1:{port}",
        "AIRFLOW_CONN_LAKE": json.dumps({"conn_type": "google_cloud_platform", "extra": extra}),
        "NO_GCE_CHECK": "true",
    }
    try:
        yield stand_in
    finally:
        rows.stop(None)
        rest.shutdown()
        rest.server_close()
