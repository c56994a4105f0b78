"""The rows of a query of BigQuery: several streams of its result at once, or the files that it was exported to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs

from airflow_mlops.spec.window import Window
from airflow_mlops.stages.files import FileInput

STREAMS = 4
"""How many streams are read at once, at most."""
_HELD = 8


class Result:
    """The rows in the table that holds a query's result; see `Rows`.

    Args:
        reader: the client of the Storage Read API.
        parent: the project that reads, as ``projects/ID``.
        table: as ``projects/P/datasets/D/tables/T``.
        within: a condition that the rows meet. Default: all of them.
        schema: the types that the columns are read as.
        speaking: a scope that turns the client's errors into ours.
    """

    def __init__(
        self,
        reader: Any,
        parent: str,
        table: str,
        within: str,
        schema: pa.Schema,
        speaking: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._reader, self._parent, self._table, self._within = reader, parent, table, within
        self.schema, self._speaking = schema, speaking
        self.bytes = 0
        """How many bytes of rows have come."""

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        """The rows in batches, once, in no order; some dozens of batches are held at most."""
        session = self._open()
        sent = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
        arrived: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(_HELD)
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._read, args=(stream.name, sent, arrived, ended), daemon=True)
            for stream in session.streams
        ]
        for thread in threads:
            thread.start()
        try:
            waiting = len(threads)
            while waiting:
                found = arrived.get()
                if isinstance(found, BaseException):
                    with self._speaking():
                        raise found
                if found is None:
                    waiting -= 1
                    continue
                self.bytes += found.nbytes
                yield pa.Table.from_batches([found]).select(self.schema.names).cast(self.schema)
        finally:
            ended.set()
            for thread in threads:
                while thread.is_alive():
                    with suppress(queue.Empty):
                        arrived.get_nowait()
                    thread.join(0.05)

    def _open(self) -> Any:
        from google.cloud.bigquery_storage_v1 import types

        compressed = types.ArrowSerializationOptions(
            buffer_compression=types.ArrowSerializationOptions.CompressionCodec.LZ4_FRAME
        )
        options = types.ReadSession.TableReadOptions(
            row_restriction=self._within, arrow_serialization_options=compressed
        )
        asked = types.ReadSession(table=self._table, data_format=types.DataFormat.ARROW, read_options=options)
        with self._speaking():
            return self._reader.create_read_session(parent=self._parent, read_session=asked, max_stream_count=STREAMS)

    def _read(self, stream: str, schema: pa.Schema, arrived: queue.Queue[Any], ended: threading.Event) -> None:
        """Read one stream; a connection that breaks is taken up again by the client, at the row where it broke."""

        def put(value: Any) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    arrived.put(value, timeout=0.1)
                    return

        try:
            for answer in self._reader.read_rows(stream):
                if ended.is_set():
                    return
                data = pa.py_buffer(answer.arrow_record_batch.serialized_record_batch)
                put(pa.ipc.read_record_batch(data, schema))
            put(None)
        except BaseException as error:
            put(error)


class Exported:
    """The rows in Parquet files that a query was exported to; see `Rows`."""

    def __init__(self, folder: str, schema: pa.Schema) -> None:
        self._folder, self.schema = folder, schema

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        """The rows, file by file."""
        fs, path = url_to_fs(self._folder)
        fs.invalidate_cache()
        for file in sorted(fs.find(path)):
            for table in FileInput(fs.unstrip_protocol(file), "parquet").tables():
                yield table.select(self.schema.names).cast(self.schema)


def remove(folder: str) -> None:
    """Remove what was exported to a folder; nothing happens where nothing was."""
    fs, path = url_to_fs(folder)
    fs.invalidate_cache()
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
