"""Profiles of rows, in one pass over Parquet files or Arrow batches, in bounded memory.

Each batch is profiled by itself and merged into what came before: a profile of a file in pieces is the profile of the
file. Numbers cost about ten nanoseconds a value, which is what reading them from Parquet costs as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from airflow_mlops.call.store import reaching
from airflow_mlops.drift.arrow import array_of, floats_of, numbers_of, present
from airflow_mlops.drift.bins import LIMIT, Bins, Floats, Integers, first_level, histogram, of_distinct
from airflow_mlops.drift.columns import Kind, kind_of
from airflow_mlops.drift.profile import (
    MOST_CATEGORIES,
    Blocks,
    ColumnProfile,
    DatasetProfile,
    Looked,
    most_frequent,
)
from airflow_mlops.errors import DataError, SchemaError

_VALUES = 1 << 22
"""How many values a batch of files may hold, over all columns: 32 MiB of numbers."""
_BUFFER = 1 << 20
_LOOKED = 10_000
_SMALL = 4 * LIMIT
_LONGEST = 120

Batch: TypeAlias = pa.RecordBatch | pa.Table


class Cells(Protocol):
    """How the values of one column are put into a few cells."""

    @property
    def size(self) -> int:
        """How many cells there are."""

    def codes(self, values: Any) -> npt.NDArray[np.integer[Any]]:
        """The cell of each value, from 0 to ``size - 1``: of an Arrow array, or of numbers with NaN for null."""


def profile_files(files: Sequence[str], columns: Sequence[str] = (), time: str | None = None) -> DatasetProfile:
    """The profile of Parquet files, at any fsspec URI.

    Args:
        files: where they are.
        columns: the columns to look at, where they are there, beside the time. Default: all.
        time: the column that says when a row happened.

    Raises:
        DataError: when one of them cannot be read.
    """
    whole = DatasetProfile(0, {}, time)
    for file in files:
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
            batches = _batches(parquet, _read_of(schema, columns, time))
            whole = profile_batches(batches, schema, columns, time, rows=parquet.metadata.num_rows, after=whole)
    return whole


def profile_batches(
    batches: Iterable[Batch],
    schema: pa.Schema,
    columns: Sequence[str] = (),
    time: str | None = None,
    *,
    rows: int | None = None,
    after: DatasetProfile | None = None,
) -> DatasetProfile:
    """The profile of a stream of rows.

    Args:
        batches: record batches or tables, of this schema; columns that are not compared may be left out of them.
        schema: the names and types of the columns.
        columns: as for `profile_files`.
        time: as for `profile_files`.
        rows: how many rows there are, for batches without a column. Default: as many as the batches have.
        after: the profile of earlier rows, which these are added to.
    """
    names = schema.names
    wanted = [name for name in dict.fromkeys(names) if not columns or name in columns or name == time]
    found = {name: _empty(name, [field.type for field in schema if field.name == name]) for name in wanted}
    read = [name for name in wanted if found[name].kind not in ("twice", "other")]
    kinds = {name: found[name].kind for name in read}
    count = 0
    for batch in batches:
        for name in read:
            # Bins begin as coarse as those they will be added to, which is what they come to anyway.
            earlier = after.columns.get(name) if after else None
            level = max(found[name].bins.level, earlier.bins.level if earlier else 0)
            part = _part(batch.column(name), kinds[name], found[name], level, look=count == 0)
            found[name] = found[name].merge(part) if count else part
        count += batch.num_rows
    count = count if rows is None else rows
    for name in set(wanted) - set(read):
        found[name] = replace(found[name], rows=count)
    whole = DatasetProfile(count, found, time)
    return after.merge(whole) if after is not None else whole


def count_blocks(batches: Iterable[Batch], time: str, edges: Integers, cells: Mapping[str, Cells]) -> Blocks:
    """How the rows fall into cells, in each block of time. Rows without a time, or outside the blocks, are left out.

    Args:
        batches: the rows, with the time and all columns that have cells; see `read_files`.
        time: the column that says when a row happened.
        edges: the ends of the blocks in microseconds since 1970 (UTC), rising, of shape ``(blocks + 1,)``.
        cells: the cells of the columns.
    """
    blocks = len(edges) - 1
    rows = np.zeros(blocks, np.int64)
    counts = {name: np.zeros((blocks, each.size), np.int64) for name, each in cells.items()}
    for batch in batches:
        times = microseconds(_one(batch.column(time)))
        at = np.full(len(times), -1)
        at[present(times)] = np.searchsorted(edges, numbers_of(times.drop_null()), side="right") - 1
        inside = (at >= 0) & (at < blocks)
        at = at[inside]
        rows += np.bincount(at, minlength=blocks)
        names = batch.schema.names
        for name, each in cells.items():
            # A file of another time may lack a column.
            values = _plain(_one(batch.column(name))) if name in names else pa.nulls(batch.num_rows, pa.float64())
            number = kind_of(values.type) == "number"
            codes = np.asarray(each.codes(floats_of(values) if number else values))[inside]
            flat = np.bincount(at * each.size + codes, minlength=blocks * each.size)
            counts[name] += flat.reshape(blocks, each.size)
    return Blocks(np.asarray(edges, np.int64), rows, counts)


def read_files(files: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of Parquet files in batches, these columns only; texts may come as dictionaries."""
    for file in files:
        with _opened(file) as parquet:
            yield from _batches(parquet, list(columns))


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    with reaching(file):
        fs, path = url_to_fs(file)
        local = isinstance(fs, LocalFileSystem)
        opened: AbstractContextManager[Any] = nullcontext(path) if local else fsspec.open(file, "rb")
        try:
            with opened as source:
                texts = _texts(pq.read_schema(source))
                # Without reading ahead: otherwise Arrow fetches whole column chunks first.
                with pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, read_dictionary=texts) as parquet:
                    yield parquet
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(
                f"{file} cannot be read as Parquet: {error}", fix="write it again, or leave it out"
            ) from error
        except OSError as error:
            # Arrow says so of a file that is cut off or holds something else.
            if error.errno is None:
                raise DataError(
                    f"{file} cannot be read as Parquet: {error}", fix="write it again, or leave it out"
                ) from error
            raise


def _texts(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def _read_of(schema: pa.Schema, columns: Sequence[str], time: str | None) -> list[str]:
    names = schema.names
    return [
        field.name
        for field in schema
        if (not columns or field.name in columns or field.name == time)
        and names.count(field.name) == 1
        and kind_of(field.type) != "other"
    ]


def _batches(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if columns:
        rows = 1 << int(np.clip(np.log2(_VALUES / len(columns)), 13, 17))
        yield from parquet.iter_batches(rows, columns=columns)


def _empty(name: str, kinds: list[pa.DataType]) -> ColumnProfile:
    kind: Kind = kind_of(kinds[0]) if len(kinds) == 1 else "twice"
    return ColumnProfile(name, kind, " | ".join(sorted({_text_of(each) for each in kinds})))


def _text_of(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _text_of(kind.value_type)
    return "string" if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else str(kind)


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    return values


def _plain(values: pa.Array) -> pa.Array:
    """The same values in a form that Arrow's functions and numpy take."""
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    floats = pa.types.is_decimal(values.type) or pa.types.is_float16(values.type)
    return values.cast(pa.float64()) if floats else values


def microseconds(values: pa.Array) -> pa.Array:
    """Dates or timestamps as microseconds since 1970; those without a zone are taken for UTC.

    Raises:
        SchemaError: when the values are no times.
    """
    if kind_of(values.type) != "time":
        raise SchemaError(f"the time column holds {values.type}", allowed="timestamps or dates")
    zone = values.type.tz if pa.types.is_timestamp(values.type) else None
    return values.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())


def _part(column: Any, kind: Kind, so_far: ColumnProfile, level: int, *, look: bool) -> ColumnProfile:
    """The profile of one batch of a column."""
    values = _one(column)
    part = ColumnProfile(so_far.name, kind, so_far.type, rows=len(values), nulls=values.null_count)
    if kind == "null":
        return replace(part, nulls=len(values))
    if kind == "category":
        return _categories(values, part, look=look)
    values = _plain(values)
    part = replace(part, nulls=values.null_count)
    values = values.drop_null() if values.null_count else values
    if kind == "time":
        ends = pc.min_max(microseconds(values)).as_py()
        return replace(part, min=ends["min"], max=ends["max"])
    return _numbers(values, part, level, look=look)


def _numbers(values: pa.Array, part: ColumnProfile, level: int, *, look: bool) -> ColumnProfile:
    numbers = numbers_of(values)
    if look and numbers.dtype.kind in "iu":
        first = numbers[:_LOOKED]
        rising = bool((first[1:] > first[:-1]).all())
        part = replace(part, looked=Looked(len(first), len(first) if rising else len(np.unique(first)), rising))
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            spoilt = not np.isfinite(numbers.sum())
        if spoilt:
            finite = np.isfinite(numbers)
            nans = int(np.isnan(numbers).sum())
            part = replace(part, nans=nans, infinite=len(numbers) - int(finite.sum()) - nans)
            numbers = numbers[finite]
    if not len(numbers):
        return part
    least, most = numbers.min(), numbers.max()
    bins = _few(numbers, int(most) - int(least) if numbers.dtype.kind in "iu" else None, level)
    if bins is not None and bins.exact:
        mean, squares = _moments(bins.lower, bins.count)
    else:
        floats = numbers.astype(np.float64, copy=False)
        bins = histogram(floats, bins.level if bins else level or first_level(floats) or 1)
        mean, squares = _moments(floats)
    return replace(part, min=float(least), max=float(most), mean=mean, squares=squares, bins=bins)


def _few(numbers: npt.NDArray[Any], span: int | None, level: int) -> Bins | None:
    """The histogram of numbers of which few are different, made by counting them; None where there are many."""
    if span is not None and span < _SMALL:
        least = numbers.min()
        counts = np.bincount((numbers - least).astype(np.int64, copy=False))
        there = np.flatnonzero(counts)
        return of_distinct((there + int(least)).astype(np.float64), counts[there])
    if level or first_level(numbers[: 1 << 16].astype(np.float64, copy=False)):
        return None
    found = pc.value_counts(array_of(numbers)).flatten()
    return of_distinct(numbers_of(found[0]).astype(np.float64), numbers_of(found[1]))


def _moments(values: Floats, counts: Integers | None = None) -> tuple[float, float]:
    """The mean of finite values, and the sum of their squared distances from it."""
    weights = counts if counts is not None else 1
    rows = int(counts.sum()) if counts is not None else len(values)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float((values * weights).sum() / rows) if counts is not None else float(values.sum() / rows)
        if not np.isfinite(mean):
            mean = float((values * (weights / rows)).sum())
        apart = values - mean
        np.square(apart, out=apart)
        return mean, float((apart * counts).sum() if counts is not None else apart.sum())


def _categories(values: pa.Array, part: ColumnProfile, *, look: bool) -> ColumnProfile:
    if not pa.types.is_dictionary(values.type):
        values = _plain(values)
    if look:
        first = _plain(values[:_LOOKED]).drop_null()
        part = replace(part, looked=Looked(len(first), pc.count_distinct(first).as_py(), False))
    if pa.types.is_dictionary(values.type):
        names, counts, nulls = _counted(values)
        part = replace(part, nulls=nulls)
    else:
        names, counts = pc.value_counts(values.drop_null()).flatten()
        counts = numbers_of(counts)
    error = 0
    if len(counts) > MOST_CATEGORIES:
        # Before they become texts of Python: of an identifier none is left.
        error = int(np.partition(counts, -MOST_CATEGORIES - 1)[-MOST_CATEGORIES - 1])
        kept = np.flatnonzero(counts > error)
        names, counts = names.take(array_of(kept)), counts[kept] - error
    texts = (_short(each) for each in names.to_pylist())
    found, more = most_frequent(*({text: int(count)} for text, count in zip(texts, counts, strict=True)))
    return replace(part, counts=found, error=error + more)


def _counted(values: pa.DictionaryArray) -> tuple[pa.Array, Integers, int]:
    """The different values of a dictionary array, how often each stands, and the nulls."""
    indices = numbers_of(values.indices.drop_null())
    counts = np.bincount(indices, minlength=len(values.dictionary))
    # A null may stand in the dictionary itself, too.
    counted = np.flatnonzero((counts > 0) & present(values.dictionary))
    there = counts[counted]
    return values.dictionary.take(array_of(counted)), there, len(values) - int(there.sum())


def _short(value: Any) -> str:
    """The text that a category is known by: long ones are cut, and told apart by their digest."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    import hashlib

    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{text[: _LONGEST - 14]}… {digest}"
