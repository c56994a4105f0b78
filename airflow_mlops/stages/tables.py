"""Parquet tables in and out of the store, in one canonical form, so that equal rows give equal bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, digest_of
from airflow_mlops.errors import SchemaError

if TYPE_CHECKING:
    # Loaded where a table becomes a frame, and not by the stages that look at Arrow columns only.
    import pandas as pd


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


def schema_id(schema: pa.Schema) -> str:
    """The digest of column names and types, in their order."""
    return digest_of([[field.name, str(field.type)] for field in schema])


def write_table(table: pa.Table, store: Store, kind: str = "dataset") -> ArtifactRef:
    """Keep a table in the store."""
    table = table.cast(canonical(table.schema))
    with store.scratch(".parquet") as file:
        pq.write_table(table, file, compression="zstd")
        return store.put_file(file, kind, rows=table.num_rows, schema_id=schema_id(table.schema))


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
