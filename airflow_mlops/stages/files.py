"""Parquet and CSV files at any fsspec URI, read as a stream of tables in bounded memory."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from airflow_mlops.call.store import reaching
from airflow_mlops.errors import DataError
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.tables import ROW_GROUP

_BUFFER = 1 << 20
_CSV_BLOCK = 4 << 20
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# What Arrow takes a column of texts for, in its own order. The last takes everything.
_GUESSES = (
    pa.null(),
    pa.int64(),
    pa.bool_(),
    pa.date32(),
    pa.time32("s"),
    pa.timestamp("s"),
    pa.timestamp("s", "UTC"),
    pa.timestamp("ns"),
    pa.timestamp("ns", "UTC"),
    pa.float64(),
    pa.string(),
)


class FileInput:
    """One source file, with the columns that its place in a partitioned folder gives it.

    Args:
        uri: the file.
        declared: its format; None tells it from the suffix.
        constants: columns with one value for the whole file.
    """

    def __init__(self, uri: str, declared: str | None = None, constants: pa.Schema | None = None) -> None:
        self.uri = uri
        self.constants = constants if constants is not None else pa.schema([])
        name = uri.lower().removesuffix(".gz")
        self.format = declared or ("csv" if name.endswith((".csv", ".tsv")) else "parquet")
        with reading(uri, self.format):
            self._csv = _Csv(uri) if self.format == "csv" else None
            own = self._csv.schema if self._csv else _parquet_schema(uri)
        # What the file itself holds goes before what its place says.
        self._added = [field for field in self.constants if field.name not in own.names]
        self.schema = pa.schema([*own.remove_metadata(), *self._added])

    def tables(self, time: str | None = None, windows: Sequence[Window] = ()) -> Iterator[pa.Table]:
        """The rows, in order.

        Row groups of a Parquet file that hold no row of the windows, as their statistics have it, are passed over.
        """
        with reading(self.uri, self.format):
            for table in self._csv.tables() if self._csv else _parquet_tables(self.uri, time, windows):
                for field in self._added:
                    value = pa.scalar(field.metadata[b"value"].decode()).cast(field.type) if field.metadata else None
                    table = table.append_column(  # noqa: PLW2901
                        pa.field(field.name, field.type), pa.repeat(pa.scalar(value, field.type), table.num_rows)
                    )
                yield table


def constants_of(partitions: Sequence[dict[str, str]]) -> list[pa.Schema]:
    """The columns that the files of a folder get from their places, of one type over all files.

    Whole numbers are integers, ISO dates are dates, all else is text. The value stands in the field's metadata.
    """
    values: dict[str, list[str]] = {}
    for each in partitions:
        for name, value in each.items():
            values.setdefault(name, []).append(value)
    kinds = {name: _kind_of([value for value in found if value != _NO_PARTITION]) for name, found in values.items()}
    return [
        pa.schema(
            pa.field(name, kinds[name], metadata=None if value == _NO_PARTITION else {"value": value})
            for name, value in each.items()
        )
        for each in partitions
    ]


def _kind_of(values: list[str]) -> pa.DataType:
    if values and all(re.fullmatch(r"-?\d{1,18}", value) for value in values):
        return pa.int64()
    if values and all(re.fullmatch(r"\d{4}-\d\d-\d\d", value) for value in values):
        return pa.date32()
    return pa.string()


def _parquet_schema(uri: str) -> pa.Schema:
    with fsspec.open(uri, "rb") as file:
        return pq.read_schema(file)


def _parquet_tables(uri: str, time: str | None, windows: Sequence[Window]) -> Iterator[pa.Table]:
    # So a column chunk is read piece by piece, however large its row group is; Arrow would fetch whole chunks first.
    with fsspec.open(uri, "rb") as opened, pq.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False) as file:
        groups = [
            group
            for group in range(file.metadata.num_row_groups)
            if not windows or time is None or _may_hold(file.metadata.row_group(group), time, windows)
        ]
        for batch in file.iter_batches(ROW_GROUP, row_groups=groups):
            yield pa.Table.from_batches([batch])


def _may_hold(group: Any, time: str, windows: Sequence[Window]) -> bool:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == time and column.statistics is not None and column.statistics.has_min_max:
            low, high = (_instant(value) for value in (column.statistics.min, column.statistics.max))
            if low is not None and high is not None:
                return low < windows[-1].end and high >= windows[0].start
    return True


def _instant(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime(value.year, value.month, value.day, tzinfo=UTC) if isinstance(value, date) else None


class _Csv:
    """A CSV file whose columns have the types that all of it fits, as if it had been read whole."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._kinds: dict[str, pa.DataType] = {}
        self._names: list[str] = []
        self._only: pa.Table | None = None
        while True:
            try:
                self.schema = self._look()
                return
            except (pa.ArrowInvalid, UnicodeDecodeError) as error:
                if isinstance(error, UnicodeDecodeError) or str(error).endswith("invalid UTF8 data"):
                    raise _not_utf8(self.uri) from error
                if not self._widen(str(error)):
                    raise

    def _look(self) -> pa.Schema:
        """Read all of it once; what fits into one block is kept."""
        with self._open() as reader:
            self._names, self._now = reader.schema.names, reader.schema.types
            if pa.binary() in self._now:  # so Arrow takes texts of a first block that are not UTF-8
                raise _not_utf8(self.uri)
            blocks = 0
            for batch in reader:
                blocks += 1
                self._only = pa.Table.from_batches([batch]) if blocks == 1 else None
            if not blocks:
                self._only = reader.schema.empty_table()
            # What Arrow took from the first block holds from now on.
            self._kinds = dict(zip(self._names, self._now, strict=True))
            return reader.schema

    def _widen(self, words: str) -> bool:
        """Let the column that did not fit have the next type; False when it is not about a type."""
        found = re.search(r"column #(\d+)", words)
        if not found or "conversion error" not in words or not self._names:
            return False
        name = self._names[int(found[1])]
        now = self._kinds.get(name, self._now[int(found[1])])
        if now not in _GUESSES[:-1]:
            return False
        self._kinds[name] = _GUESSES[_GUESSES.index(now) + 1]
        return True

    @contextmanager
    def _open(self) -> Iterator[pacsv.CSVStreamingReader]:
        with fsspec.open(self.uri, "rb", compression="infer") as file:
            yield pacsv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False),
                parse_options=pacsv.ParseOptions(
                    delimiter="\t" if ".tsv" in self.uri.lower() else ",", newlines_in_values=True
                ),
                # Arrow takes an empty text for a text, and only the unquoted one can be a null.
                convert_options=pacsv.ConvertOptions(
                    column_types=self._kinds, strings_can_be_null=True, quoted_strings_can_be_null=False
                ),
            )

    def tables(self) -> Iterator[pa.Table]:
        if self._only is not None:
            yield self._only
            return
        with self._open() as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


def _not_utf8(uri: str) -> DataError:
    """What is wrong with a CSV file of another encoding, and where it shows first."""
    where = ""
    with fsspec.open(uri, "rb", compression="infer") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where = f": line {number} has byte 0x{line[error.start]:02x} at position {error.start + 1}"
                break
    return DataError(
        f"{uri} is not UTF-8{where}",
        fix="convert it from the encoding that it has, such as iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv",
    )


@contextmanager
def reading(uri: str, form: str) -> Iterator[None]:
    """Turn what Arrow says of a bad file into what to do about it."""
    with reaching(uri):
        try:
            yield
        except (OSError, pa.ArrowInvalid, EOFError, zlib.error) as error:
            # Arrow raises a bare OSError for a cut-off page; one with an errno comes from the file system. A packed
            # file that was cut off ends in an EOFError or in what zlib cannot read.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                f"{uri} is no readable {form} file: {error}",
                fix="write the file again; it may have been cut off, or be of another format (data.format)",
            ) from error
