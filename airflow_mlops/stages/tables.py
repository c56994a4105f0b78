"""Parquet tables in and out of the store, in one canonical form, so that equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, digest_of
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.data_schema import ColumnType

if TYPE_CHECKING:
    # Loaded where a table becomes a frame, and not by the stages that look at Arrow columns only.
    import pandas as pd

ROW_GROUP = 65_536
"""The rows of every row group but the last, whatever pieces the rows came in."""


def canonical(schema: pa.Schema) -> pa.Schema:
    """Plain types without metadata: what a column is, not how a writer happened to encode it.

    Raises:
        SchemaError: when two columns have the same name.
    """
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(f"the column {twice[0]!r} stands twice", fix="rename one of them at the source")
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    # scikit-learn and pandas know decimals only as objects, which would pass for texts.
    return pa.float64() if pa.types.is_decimal(kind) else kind


def type_of(kind: pa.DataType) -> ColumnType | None:
    """The data schema's word for an Arrow type, or None where it has none."""
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_string(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return "date" if pa.types.is_date(kind) else None


def holds(kind: pa.DataType, declared: ColumnType) -> bool:
    """Whether an Arrow type is accepted where the data schema declares a type."""
    found = type_of(kind)
    return pa.types.is_null(kind) or found == declared or (found == "integer" and declared == "number")


def schema_id(schema: pa.Schema) -> str:
    """The digest of column names and types, in their order."""
    return digest_of([[field.name, str(field.type)] for field in schema])


def write_table(table: pa.Table, store: Store, kind: str = "dataset") -> ArtifactRef:
    """Keep a table in the store."""
    schema = canonical(table.schema)
    return write_tables([table.cast(schema)], schema, store, kind)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, store: Store, kind: str = "dataset") -> ArtifactRef:
    """Keep a stream of tables of one schema in the store as one; no more than two row groups are held at a time.

    Nothing is kept when the stream or the disk breaks off.
    """
    rows = 0
    with store.scratch(".parquet") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _even(tables):
                rows += group.num_rows
                writer.write_table(group)
        return store.put_file(file, kind, rows=rows, schema_id=schema_id(schema))


def _even(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces of `ROW_GROUP`, so that equal rows give equal bytes however they arrive."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= ROW_GROUP:
            together = pa.concat_tables(held)
            whole = together.num_rows - together.num_rows % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                yield together.slice(start, ROW_GROUP).combine_chunks()
            held = [together.slice(whole)]
    last = pa.concat_tables(held) if held else None
    if last is not None and last.num_rows:
        yield last.combine_chunks()


def read_table(ref: ArtifactRef, store: Store) -> pa.Table:
    """Read a table of the store."""
    # pq.read_table loads the datasets of Arrow, and with them pandas; and it makes columns of a path's ``key=value``.
    with pq.ParquetFile(store.fetch(ref)) as file:
        return file.read()


def read_frame(ref: ArtifactRef, store: Store) -> pd.DataFrame:
    """Read a table of the store as a frame with a plain index."""
    return to_frame(read_table(ref, store))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table as a frame with a plain index."""
    frame: pd.DataFrame = table.to_pandas()
    return frame.reset_index(drop=True)


def require_columns(names: list[str], wanted: dict[str, str]) -> None:
    """Check that columns are there; ``wanted`` maps each to what it is for.

    Raises:
        SchemaError: that names the columns that are missing and those there are.
    """
    missing = {name: use for name, use in wanted.items() if name not in names}
    if missing:
        what = ", ".join(f"{name!r} ({use})" for name, use in missing.items())
        raise SchemaError(f"the data has no column {what}", allowed=", ".join(names))
