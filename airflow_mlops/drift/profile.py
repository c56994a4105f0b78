"""What is kept of a dataset to compare it with another one: a few kilobytes a column, however many rows there were.

Profiles of files add up to the profile of all of them. Counts, extremes and bins are the same in whatever order; means,
and the place of a bin's mean in its bin, are rounded like any sum of floats.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from airflow_mlops.drift.bins import EMPTY, Bins, Integers
from airflow_mlops.drift.columns import Kind, merged_kind
from airflow_mlops.errors import DataError

VERSION = 2
"""The version of the form that is written, and of the cells that blocks of time are counted in."""
MOST_CATEGORIES = 1024
"""Up to so many different values of a column are counted exactly."""
_MAGIC = b"airflow-mlops profile "
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENOUGH = 100
_EXACT_INTEGER = 2**53


class Looked(NamedTuple):
    """What the first rows of every file say of a column that may be an identifier."""

    rows: int = 0
    """How many values were looked at."""
    distinct: int = 0
    """How many of them were different, file by file."""
    rising: bool = True
    """Whether each was an integer above the one before, in every file."""


NOTHING_LOOKED_AT = Looked()


@dataclass(frozen=True)
class ColumnProfile:
    """A column in numbers."""

    name: str
    """Its name."""
    kind: Kind
    """What it holds."""
    type: str
    """Its Arrow type; several, with ``|`` between them, where files differ."""
    rows: int = 0
    """The rows of the files that have the column."""
    nulls: int = 0
    """How many of them are null; not known of ``other`` columns, which are not read."""
    nans: int = 0
    """How many are not a number."""
    infinite: int = 0
    """How many are infinite, of either sign."""
    min: float | None = None
    """The least finite number, or the earliest time in microseconds since 1970 (UTC)."""
    max: float | None = None
    """The greatest."""
    mean: float = 0.0
    """The mean of the finite numbers."""
    squares: float = 0.0
    """The sum of the squared distances of the finite numbers from their mean."""
    bins: Bins = EMPTY
    """The finite numbers as a histogram."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each category stands, the most frequent first."""
    error: int = 0
    """Each of the counts is too low by at most this; 0 says that they are exact and complete.

    Beyond `MOST_CATEGORIES` different values these are the counters of Misra and Gries (1982), merged as in Agarwal et
    al., "Mergeable summaries" (2012): the error is at most ``rows / (MOST_CATEGORIES + 1)``.
    """
    looked: Looked = NOTHING_LOOKED_AT
    """Whether it looks like an identifier."""

    @property
    def missing(self) -> int:
        """Nulls and NaN."""
        return self.nulls + self.nans

    @property
    def valid(self) -> int:
        """The values that can be compared: finite numbers, or whatever is not null."""
        return self.rows - self.nulls - self.nans - self.infinite

    @property
    def rest(self) -> int:
        """Categories that are not among the counted ones."""
        return self.valid - sum(self.counts.values()) if self.kind == "category" else 0

    @property
    def std(self) -> float:
        """The standard deviation of the finite numbers (divided by their number, as Evidently does)."""
        return float(np.sqrt(self.squares / self.valid)) if self.valid else 0.0

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        if self.kind == "category":
            return len(self.counts) == 1 and not self.rest
        return self.valid > 0 and self.min == self.max

    @property
    def identifier(self) -> bool:
        """Whether it looks like a key: texts that hardly ever repeat, or integers that rise row by row."""
        if self.looked.rows < _ENOUGH:
            return False
        if self.kind == "category":
            return self.looked.distinct > 0.9 * self.looked.rows
        if self.kind != "number" or "int" not in self.type or self.looked.distinct < self.looked.rows:
            return False
        return self.looked.rising or max(abs(self.min or 0), abs(self.max or 0)) > _EXACT_INTEGER

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """The column over the files of both."""
        kind = merged_kind(self.kind, other.kind)
        kinds = sorted({*self.type.split(" | "), *other.type.split(" | ")} - ({"null"} if kind != "null" else set()))
        merged = ColumnProfile(
            name=self.name,
            kind=kind,
            type=" | ".join(kinds),
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            nans=self.nans + other.nans,
            infinite=self.infinite + other.infinite,
            looked=Looked(
                self.looked.rows + other.looked.rows,
                self.looked.distinct + other.looked.distinct,
                self.looked.rising and other.looked.rising,
            ),
        )
        if kind in ("mixed", "twice"):
            return merged
        ends = [each for each in (self.min, other.min) if each is not None]
        tops = [each for each in (self.max, other.max) if each is not None]
        merged = replace(merged, min=min(ends, default=None), max=max(tops, default=None))
        if kind == "number":
            mean, squares = merged_moments(
                (self.bins.rows, self.mean, self.squares), (other.bins.rows, other.mean, other.squares)
            )
            return replace(merged, mean=mean, squares=squares, bins=self.bins.merge(other.bins))
        counts, error = most_frequent(self.counts, other.counts)
        return replace(merged, counts=counts, error=self.error + other.error + error)


def merged_moments(one: tuple[int, float, float], other: tuple[int, float, float]) -> tuple[float, float]:
    """Mean and squares of two groups together (Chan, Golub and LeVeque, 1983); a group is rows, mean, squares."""
    rows = one[0] + other[0]
    if not one[0] or not other[0]:
        return (one if one[0] else other)[1:]
    with np.errstate(over="ignore", invalid="ignore"):
        # The mean as a weighted one: the same whichever comes first, and without overflow.
        mean = one[1] * (one[0] / rows) + other[1] * (other[0] / rows)
        apart = np.float64(other[1]) - one[1]
        squares = one[2] + other[2] + apart * apart * (one[0] * (other[0] / rows))
    return mean, float(squares)


def most_frequent(*parts: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Counts together, at most `MOST_CATEGORIES` of them, and by how much each may be too low because of that."""
    total: dict[str, int] = {}
    for part in parts:
        for value, count in part.items():
            total[value] = total.get(value, 0) + count
    error = 0
    if len(total) > MOST_CATEGORIES:
        error = sorted(total.values(), reverse=True)[MOST_CATEGORIES]
        total = {value: count - error for value, count in total.items() if count > error}
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))), error


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a reference's rows fell into cells, in each of its blocks of time."""

    edges: Integers
    """The ends of the blocks, in microseconds since 1970 (UTC), of shape ``(blocks + 1,)``; a block ends before its
    upper edge."""
    rows: Integers
    """The rows of each block."""
    counts: dict[str, Integers]
    """For each column its rows in each block and cell, of shape ``(blocks, cells)``."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Blocks)
            and np.array_equal(self.edges, other.edges)
            and np.array_equal(self.rows, other.rows)
            and self.counts.keys() == other.counts.keys()
            and all(np.array_equal(counts, other.counts[name]) for name, counts in self.counts.items())
        )

    def __hash__(self) -> int:
        return hash((self.edges.tobytes(), self.rows.tobytes()))


@dataclass(frozen=True)
class DatasetProfile:
    """A dataset in numbers."""

    rows: int
    """Its rows."""
    columns: Mapping[str, ColumnProfile]
    """Its columns, by name."""
    time: str | None = None
    """The column that says when a row happened."""
    blocks: Blocks | None = None
    """Its rows by blocks of time, of a reference that was profiled with a time column."""
    others: tuple[str, ...] = ()
    """Columns that its rows have as well, and that nobody compares: the target, say."""

    @property
    def time_range(self) -> tuple[datetime, datetime] | None:
        """The first and last time of its rows, in UTC; None without a time column, or without times in it."""
        column = self.columns.get(self.time or "")
        if column is None or column.kind != "time" or column.min is None or column.max is None:
            return None
        # From whole microseconds: a float of seconds would round them.
        first, last = (_EPOCH + timedelta(microseconds=int(each)) for each in (column.min, column.max))
        return first, last

    def merge(self, other: DatasetProfile) -> DatasetProfile:
        """The profile of both datasets together; blocks of time stay only where one side has no rows."""
        blocks = None
        if not self.rows or not other.rows:
            blocks = self.blocks if self.rows else other.blocks
        columns = dict(self.columns)
        for name, column in other.columns.items():
            columns[name] = columns[name].merge(column) if name in columns else column
        time = self.time if self.time == other.time else None
        others = tuple(name for name in dict.fromkeys(self.others + other.others) if name not in columns)
        return DatasetProfile(self.rows + other.rows, columns, time, blocks, others)

    def select(self, names: tuple[str, ...]) -> DatasetProfile:
        """The profile of these columns only, and of the time."""
        columns = {name: self.columns[name] for name in names if name in self.columns}
        return replace(self, columns=columns)

    def to_bytes(self) -> bytes:
        """The profile as bytes: the same for equal profiles."""
        arrays: list[np.ndarray[Any, Any]] = []
        columns = [_head(column, arrays) for column in self.columns.values()]
        head: dict[str, Any] = {"rows": self.rows, "time": self.time, "columns": columns, "others": self.others}
        if self.blocks is not None:
            arrays += [self.blocks.edges, self.blocks.rows, *self.blocks.counts.values()]
            head["blocks"] = {name: counts.shape[1] for name, counts in self.blocks.counts.items()}
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        # Byte by byte of equal weight: most of the high ones are zero, and compress to nothing.
        body = b"".join(
            np.ascontiguousarray(each).reshape(-1).view(np.uint8).reshape(-1, each.itemsize).T.tobytes()
            for each in arrays
        )
        return _MAGIC + b"%d\n" % VERSION + zlib.compress(len(text).to_bytes(8, "little") + text + body)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "the profile") -> DatasetProfile:
        """Read what `to_bytes` has written.

        Raises:
            DataError: when it is no profile, is cut off, or is of a version that is not known here.
        """
        first = data[:64].partition(b"\n")[0]
        if not first.startswith(_MAGIC):
            raise DataError(f"{where} is no profile", allowed="what DatasetProfile.to_bytes writes")
        version = first.removeprefix(_MAGIC).decode("ascii", "replace")
        if version != str(VERSION):
            raise DataError(
                f"{where} is of version {version}, and this release reads version {VERSION}",
                fix="make the profile anew from its data, or train the model again",
            )
        try:
            return _read(zlib.decompress(data[len(first) + 1 :]))
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise DataError(f"{where} is damaged: {error}", fix="make it anew from its data") from error


def _head(column: ColumnProfile, arrays: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """A column as plain JSON values, and its bins as arrays."""
    head = {name: value for name, value in vars(column).items() if name not in ("bins", "counts")}
    if column.counts:
        head["counts"] = dict(column.counts)
    if len(column.bins.index):
        head["bins"] = [column.bins.level, len(column.bins.index)]
        arrays += [np.diff(column.bins.index, prepend=0), column.bins.count, column.bins.place]
    return head


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def array(self, dtype: type[np.generic], count: int) -> Any:
        size = np.dtype(dtype).itemsize
        part = self.data[self.at : self.at + count * size]
        self.at += count * size
        return np.frombuffer(part, np.uint8).reshape(size, count).T.copy().view(dtype).reshape(count)


def _read(data: bytes) -> DatasetProfile:
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    reader = _Reader(data[8 + size :])
    columns = {}
    for each in head["columns"]:
        if "bins" in each:
            level, count = each["bins"]
            index, counts = np.cumsum(reader.array(np.int64, count)), reader.array(np.int64, count)
            each["bins"] = Bins(level, index, counts, reader.array(np.float32, count))
        columns[each["name"]] = ColumnProfile(**{**each, "looked": Looked(*each["looked"])})
    blocks = None
    if "blocks" in head:
        count = len(reader.data[reader.at :]) // 8
        cells = sum(head["blocks"].values())
        # One more edge than blocks: edges + rows + cells for every block.
        number = (count - 1) // (2 + cells)
        edges, rows = reader.array(np.int64, number + 1), reader.array(np.int64, number)
        blocks = Blocks(
            edges,
            rows,
            {
                name: reader.array(np.int64, number * wide).reshape(number, wide)
                for name, wide in head["blocks"].items()
            },
        )
    return DatasetProfile(head["rows"], columns, head["time"], blocks, tuple(head["others"]))
