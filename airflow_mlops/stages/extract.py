"""Extraction: the windows of a source become one immutable Parquet snapshot, named by its content."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from airflow_mlops.call.source import files_of, windows_of
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import DataError, DataNotFoundError, SchemaError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.spec.window import Window, last_windows
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.tables import canonical, require_columns, schema_id

_BATCH_ROWS = 65_536


def run(call: Call, params: Extract, store: Store) -> Outcome:
    """Read the run's windows; output ``data``."""
    ref = extract(params, call.window, store)
    return outcome_of(call, outputs={"data": ref}, metrics={"rows": float(ref.rows or 0)})


def extract(params: Extract, window: Window | None, store: Store) -> ArtifactRef:
    """Read the windows that end with this one, in bounded memory for Parquet, and keep them as one file.

    Raises:
        DataNotFoundError: when a window has no file, or all of them together no row.
        DataError: when a file cannot be read.
        SchemaError: when the files' columns do not fit together.
    """
    windows = last_windows(params.grain, window, params.last) if window else ()
    files = _files(params, windows)
    inputs = [_Input(file, params.format) for file in files]
    try:
        schema = canonical(pa.unify_schemas([canonical(each.schema) for each in inputs], promote_options="permissive"))
    except pa.ArrowTypeError as error:
        raise SchemaError(
            f"the files of {params.source} have a column of different types: {error}",
            fix="write it with one type in every window",
        ) from error
    if params.time:
        require_columns(schema.names, {params.time: "data.time"})
    rows = 0
    with store.scratch(".parquet") as target:
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for each in inputs:
                for table in each.tables():
                    kept = _within(_fit(table, schema), params.time, windows)
                    rows += kept.num_rows
                    if kept.num_rows:
                        writer.write_table(kept)
        if not rows:
            raise DataNotFoundError(
                f"{params.source} has no rows{_in_windows(windows)}",
                fix="give another window, or wait until its data has arrived",
            )
        return store.put_file(target, "dataset", rows=rows, schema_id=schema_id(schema))


def _files(params: Extract, windows: tuple[Window, ...]) -> list[str]:
    if "{window}" not in params.source:
        files = files_of(params.source, None)
        if not files:
            raise DataNotFoundError(
                f"there is no file {params.source}", fix="correct data.source, or put the file there"
            )
        return files
    if not windows:
        raise DataNotFoundError(f"{params.source} comes in windows, and the run has none", fix="give the run a window")
    files = []
    for each in windows:
        found = files_of(params.source, each)
        if not found:
            there = [known.key for known in windows_of(params.source, params.grain)]
            raise DataNotFoundError(
                f"there is no file {params.source.replace('{window}', each.key)} for the window {each.key}",
                allowed=f"{there[0]} to {there[-1]}" if there else "none: no window of this source has arrived",
                fix="give the run another window, read fewer windows, or wait until the file has arrived",
            )
        files += found
    return files


def _in_windows(windows: tuple[Window, ...]) -> str:
    if not windows:
        return ""
    return f" in the window {windows[-1].key}" if len(windows) == 1 else f" in {windows[0].key} to {windows[-1].key}"


class _Input:
    """One source file, Parquet or CSV."""

    def __init__(self, uri: str, declared: str | None) -> None:
        self.uri = uri
        name = uri.lower().removesuffix(".gz")
        self.format = declared or ("csv" if name.endswith((".csv", ".tsv")) else "parquet")
        self._csv: pa.Table | None = None
        with self._reading():
            if self.format == "csv":
                self.schema = self._read_csv().schema
            else:
                with fsspec.open(uri, "rb") as file:
                    self.schema = pq.read_schema(file)

    def _read_csv(self) -> pa.Table:
        if self._csv is None:
            parse = pacsv.ParseOptions(delimiter="\t" if ".tsv" in self.uri.lower() else ",", newlines_in_values=True)
            with fsspec.open(self.uri, "rb", compression="infer") as file:
                # Arrow takes an empty text for a text, and only the unquoted one can be a null.
                convert = pacsv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
                self._csv = pacsv.read_csv(pa.PythonFile(file, mode="r"), parse_options=parse, convert_options=convert)
        return self._csv

    def tables(self) -> Iterator[pa.Table]:
        with self._reading():
            if self.format == "csv":
                yield self._read_csv()
                return
            with fsspec.open(self.uri, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS):
                    yield pa.Table.from_batches([batch])

    def _reading(self) -> Any:
        return _Reading(self.uri, self.format)


class _Reading:
    """Turns what Arrow says of a bad file into what to do about it."""

    def __init__(self, uri: str, form: str) -> None:
        self.uri, self.form = uri, form
        self._reaching = reaching(uri)

    def __enter__(self) -> None:
        self._reaching.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        # Arrow raises a bare OSError for a cut-off page; one with an errno comes from the file system. A packed file
        # that was cut off ends in an EOFError or in what zlib cannot read.
        if isinstance(error, (pa.ArrowInvalid, EOFError, zlib.error)) or (
            isinstance(error, OSError) and error.errno is None
        ):
            raise DataError(
                f"{self.uri} is no readable {self.form} file: {error}",
                fix="write the file again; it may have been cut off, or be of another format (data.format)",
            ) from error
        return bool(self._reaching.__exit__(kind, error, traceback))


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a table to the common schema: its order, its types, nulls where it lacks a column."""
    table = table.cast(canonical(table.schema))
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowInvalid as error:
            raise SchemaError(
                f"the column {field.name!r} does not fit into {field.type}, the type it has over all windows: {error}",
                fix="write it with one type in every window",
            ) from error
    return pa.table(columns, schema=schema)


def _within(table: pa.Table, time: str | None, windows: tuple[Window, ...]) -> pa.Table:
    if time is None or not windows:
        return table
    column = table[time]
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise SchemaError(
            f"the time column {time!r} holds {column.type}",
            allowed="timestamps or dates",
            fix="write it as a timestamp, or leave data.time out",
        )
    naive = column.type.tz is None
    first, last = (at.replace(tzinfo=None) if naive else at for at in (windows[0].start, windows[-1].end))
    kind = column.type
    inside = pc.and_(pc.greater_equal(column, pa.scalar(first, kind)), pc.less(column, pa.scalar(last, kind)))
    return table.filter(inside)
