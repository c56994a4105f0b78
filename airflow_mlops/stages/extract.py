"""Extraction: the windows of a source become one immutable Parquet snapshot, named by its content.

Rows go through in batches, never whole. Each window is kept by itself as well, so a later run reads the new one only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.connection import connection_of
from airflow_mlops.call.source import files_fingerprint, files_of, partitions_of, windows_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import DataNotFoundError, SchemaError
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Extract
from airflow_mlops.spec.window import Window, last_windows
from airflow_mlops.stages.database import open_database
from airflow_mlops.stages.files import FileInput, constants_of
from airflow_mlops.stages.outcome import outcome_of
from airflow_mlops.stages.snapshots import Snapshots
from airflow_mlops.stages.tables import canonical, require_columns, write_tables


class Input(Protocol):
    """Rows of one schema, as a stream."""

    schema: pa.Schema

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        """The rows; those that are surely outside the windows may be left out already."""


def run(call: Call, params: Extract, store: Store) -> Outcome:
    """Read the run's windows; output ``data``."""
    ref = extract(params, call.window, store, call)
    return outcome_of(call, outputs={"data": ref}, metrics={"rows": float(ref.rows or 0)})


def extract(params: Extract, window: Window | None, store: Store, call: Call | None = None) -> ArtifactRef:
    """Read the windows that end with this one, in bounded memory, and keep them as one file.

    Args:
        params: what to read.
        window: the newest window; None reads all rows.
        store: where the rows are kept.
        call: the task that reads; its pipeline's snapshots are reused and added to. None uses none.

    Raises:
        DataNotFoundError: when a window has no file, or all of them together no row.
        DataError: when a file cannot be read, or the database refuses the query.
        SourceUnreachableError: when the database does not answer, or breaks off.
        SchemaError: when the columns of windows or files do not fit together.
    """
    windows = last_windows(params.grain, window, params.last) if window else ()
    if not windows and not isinstance(params.source, SqlSource) and "{window}" in params.source:
        raise DataNotFoundError(f"{params.source} comes in windows, and the run has none", fix="give the run a window")
    if isinstance(params.source, SqlSource):
        return _from_database(params, params.source, windows, store, call)
    return _together(params, windows, _from_files(params, params.source, windows, store, call), store)


def extract_parts(params: Extract, window: Window | None, store: Store, call: Call | None = None) -> list[ArtifactRef]:
    """The same rows, one file for each window that has rows, where the source has files of their own for windows."""
    if isinstance(params.source, SqlSource) or "{window}" not in params.source or window is None:
        return [extract(params, window, store, call)]
    windows = last_windows(params.grain, window, params.last)
    return _full(params, windows, _from_files(params, params.source, windows, store, call))


def _from_files(
    params: Extract, source: str, windows: tuple[Window, ...], store: Store, call: Call | None
) -> list[ArtifactRef]:
    kept = Snapshots(store, call, {"time": params.time, "format": params.format, "grain": params.grain})
    refs = []
    # Files that hold many windows are read once for all of them.
    parts = [(each,) for each in windows] if "{window}" in source else [windows]
    for part in parts:
        files = _files(params, source, part, windows)
        content = files_fingerprint(source, files)[7:39]
        key = f"{part[0].key}_{part[-1].key}" if len(part) > 1 else part[0].key if part else "all"
        ref = kept.by_content(key, content)
        if ref is None:
            constants = constants_of([partitions_of(source, file) for file in files])
            inputs = [FileInput(file, params.format, constant) for file, constant in zip(files, constants, strict=True)]
            ref = _write(inputs, params, part, store)
            kept.keep(key, ref, params.time if part else None, content)
        refs.append(ref)
    return refs


def identity_of(params: Extract, source: SqlSource) -> dict[str, Any]:
    """What makes the windows of a database these and no others, without secrets."""
    database = connection_of(source.connection).database
    return {**source.identity, "database": database, "time": params.time, "grain": params.grain}


def _from_database(
    params: Extract, source: SqlSource, windows: tuple[Window, ...], store: Store, call: Call | None
) -> ArtifactRef:
    connection = connection_of(source.connection)
    kept = Snapshots(store, call, identity_of(params, source))
    given = kept.of_run()
    if given is not None:
        return given
    refs: dict[str, ArtifactRef] = {}
    if params.snapshots == "reuse":
        refs = {each.key: ref for each in windows if (ref := kept.newest(each.key)) is not None}
    wanted: list[Window | None] = [each for each in windows if each.key not in refs]
    if wanted or not windows:
        now = datetime.now(UTC)
        # Over one connection and in one transaction: the windows show the database at one instant.
        run = f"{call.identity}-{call.digest}" if call else None
        with open_database(connection, [each for each in wanted if each], run, store.root) as database:
            for each in wanted or [None]:
                rows = database.query(source, params.time, each)
                ref = _write([rows], params, (each,) if each else (), store)
                refs[each.key if each else "all"] = ref
                # An empty window may only have been loaded late: it is asked for again.
                if each and now >= each.end + params.settle and ref.rows:
                    kept.keep(each.key, ref, params.time)
    data = _together(params, windows, [refs[key] for key in ([each.key for each in windows] or ["all"])], store)
    kept.keep_for_run(data)
    return data


def _together(params: Extract, windows: tuple[Window, ...], parts: list[ArtifactRef], store: Store) -> ArtifactRef:
    """The parts as one file; a part that is all there is, is that file."""
    full = _full(params, windows, parts)
    if len(full) == 1:
        return full[0]
    return _write([FileInput(str(store.fetch(part))) for part in full], params, (), store)


def _full(params: Extract, windows: tuple[Window, ...], parts: list[ArtifactRef]) -> list[ArtifactRef]:
    full = [part for part in parts if part.rows]
    if not full:
        raise DataNotFoundError(
            f"{params.source} has no rows{_in_windows(windows)}",
            fix="give another window, or wait until its data has arrived",
        )
    return full


def _write(inputs: Sequence[Input], params: Extract, windows: tuple[Window, ...], store: Store) -> ArtifactRef:
    try:
        schema = canonical(pa.unify_schemas([canonical(each.schema) for each in inputs], promote_options="permissive"))
    except pa.ArrowTypeError as error:
        raise SchemaError(
            f"the rows of {params.source} have a column of different types: {error}",
            fix="write it with one type in every window",
        ) from error
    if params.time:
        require_columns(schema.names, {params.time: "data.time"})
    tables = (
        _within(_fit(table, schema), params.time, windows)
        for each in inputs
        for table in each.tables(params.time, windows)
    )
    return write_tables(tables, schema, store)


def _files(params: Extract, source: str, part: tuple[Window, ...], windows: tuple[Window, ...]) -> list[str]:
    """The files of one part of a run's windows."""
    if "{window}" not in source:
        files = files_of(source, None)
        if not files:
            raise DataNotFoundError(
                f"there is no file {params.source}", fix="correct data.source, or put the file there"
            )
        return files
    files = []
    for each in part:
        found = files_of(source, each)
        if not found:
            raise _missing(params, source, windows, each)
        files += found
    return files


def _missing(params: Extract, source: str, windows: tuple[Window, ...], missing: Window) -> DataNotFoundError:
    """Why a run cannot have its windows, and which ones another run could have."""
    there = windows_of(source, params.grain)
    what = f"there is no file {source.replace('{window}', missing.key)} for the window {missing.key}"
    if len(windows) == 1:
        fitting, fix = there, "give the run another window, or wait until the file has arrived"
    else:
        what += f": a run about {windows[-1].key} reads {len(windows)} windows, {windows[0].key} to {windows[-1].key}"
        fitting = [each for each in there if set(last_windows(params.grain, each, params.last)) <= set(there)]
        fix = f"give the run a window with {len(windows) - 1} before it, or declare fewer (windows: {{last: N}})"
    if not there:
        allowed = "none: no window of this source has arrived"
    elif not fitting:
        allowed = f"none yet: there are {there[0].key} to {there[-1].key}"
    else:
        allowed = fitting[0].key if len(fitting) == 1 else f"{fitting[0].key} to {fitting[-1].key}"
    return DataNotFoundError(what, allowed=allowed, fix=fix)


def _in_windows(windows: tuple[Window, ...]) -> str:
    if not windows:
        return ""
    return f" in the window {windows[-1].key}" if len(windows) == 1 else f" in {windows[0].key} to {windows[-1].key}"


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
    if time is None or not windows or not table.num_rows:
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
