"""A column cut into a few cells: what the decision counts, in a window and in each time block of the reference.

A distance of distribution functions needs no more than a few dozen cells, and a few dozen cells by a hundred time
blocks is little enough to keep with a model. The cells are a function of the reference's profile alone, so they are not
stored; a window's profile, or its rows, are counted into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from airflow_mlops.drift.arrow import floats_of, numbers_of, present

if TYPE_CHECKING:
    from airflow_mlops.drift.profile import ColumnProfile

Counts = npt.NDArray[np.int64]

NUMBER_CELLS = 30
CATEGORY_CELLS = 60
MAX_BLOCKS = 96
_FEWEST_DAYS = 24
_DAY = 86_400_000_000
_HOURS = (1, 2, 3, 4, 6, 8, 12)
_DAYS = (1, 2, 3, 7, 14, 28, 91, 182, 364)
_TAILS = (0.002, 0.01)


class Cells(NamedTuple):
    """One column's cells, in this order: its values', then what the reference does not have, then the nulls'.

    Of numbers: below the least, groups of equal size from small to large (a frequent value has one of its own), above
    the greatest (and infinite). Of categories: the frequent ones, groups of rare ones, and those never seen.
    """

    ordered: bool
    edges: npt.NDArray[np.float64]
    """Of numbers: the lower edges of the groups, and the last one's upper edge."""
    gaps: npt.NDArray[np.float64]
    """Of numbers: from one cell's mean to the next one's, in standard deviations; none beyond the ends."""
    groups: Mapping[str, int]
    """Of categories: the cell of each value that the reference holds."""
    rest: bool
    """Whether rare categories were not kept by the profile, so that they cannot be told from new ones."""
    size: int

    def counts(self, column: ColumnProfile) -> Counts:
        """Count a window's profile into the cells."""
        found = np.zeros(self.size, np.int64)
        if self.ordered:
            codes = np.searchsorted(self.edges, column.bins.mean, side="right")
            found += np.bincount(codes, column.bins.count, self.size).astype(np.int64)
            found[-2] += column.infinite
        else:
            for value, count in (column.counts or {}).items():
                found[self.groups.get(value, self.size - 2)] += count
            found[-2] += column.rest
        found[-1] += column.missing
        return found

    def codes(self, values: Any) -> npt.NDArray[np.intp]:
        """The cell of each value of an Arrow array (or, of numbers, a numpy array with NaN for null)."""
        if not self.ordered:
            encoded = values.cast("string").dictionary_encode()
            words = [self.groups.get(word, self.size - 2) for word in encoded.dictionary.to_pylist()]
            codes = np.full(len(encoded), self.size - 1, np.intp)
            codes[present(encoded)] = np.array([*words, -1], np.intp)[numbers_of(encoded.indices.drop_null())]
            return codes
        if not isinstance(values, np.ndarray):
            values = floats_of(values)
        found = np.searchsorted(self.edges, values, side="right").astype(np.intp)
        found[np.isinf(values)] = self.size - 2
        found[np.isnan(values)] = self.size - 1
        return np.asarray(found)

    def expected(self, column: ColumnProfile) -> npt.NDArray[np.float64]:
        """The reference's own counts, with what it must be thought to hold in the cells where it has no row.

        A value that was seen once stands for one that was not (Good, *Biometrika* 40, 1953), and one row in so many
        lies beyond the greatest that was seen.
        """
        found = self.counts(column).astype(np.float64)
        if self.ordered:
            found[0] += 1.0
            found[-2] += 1.0
        elif not self.rest:
            found[-2] += max(1.0, sum(count == 1 for count in (column.counts or {}).values()))
        found[-1] += 0.5
        return found


def cells_of(column: ColumnProfile) -> Cells:
    """The cells of a column of the reference: a pure function of its profile."""
    return _of_number(column) if column.kind == "number" else _of_category(column)


def _of_number(column: ColumnProfile) -> Cells:
    bins = column.bins
    if not len(bins.index):
        return Cells(True, np.zeros(0), np.zeros(1), {}, False, 3)
    below = np.cumsum(bins.count)
    if len(below) <= NUMBER_CELLS:
        starts = np.arange(len(below))
    else:
        groups = int(np.clip(below[-1] // 8, 2, NUMBER_CELLS))
        shares = np.arange(1, groups) / groups
        if below[-1] >= 20 / _TAILS[0]:
            shares = np.concatenate([shares, _TAILS, 1 - np.array(_TAILS)])
        # A group ends with the bin that reaches its share; a value as frequent as a group has one of its own.
        reached = np.searchsorted(below, shares * below[-1] - 0.5)
        frequent = np.flatnonzero(bins.count >= below[-1] / groups)
        starts = np.unique(np.concatenate([[0], reached + 1, frequent, frequent + 1]))
        starts = starts[starts < len(below)]
    rows = np.add.reduceat(bins.count, starts)
    means = np.add.reduceat(bins.count * bins.mean, starts) / rows
    top = np.nextafter(bins.upper[-1], np.inf) if bins.exact else bins.upper[-1]
    gaps = np.maximum(np.diff(means) / column.std, 0.0) if len(means) > 1 else np.zeros(0)
    gaps = np.concatenate([[0.0], np.nan_to_num(gaps), [0.0]])
    return Cells(True, np.append(bins.lower[starts], top), gaps, {}, False, len(means) + 3)


def _of_category(column: ColumnProfile) -> Cells:
    counts = column.counts or {}
    values = sorted(counts, key=lambda value: (-counts[value], value))
    alone = len(values)
    if alone > CATEGORY_CELLS:
        # Who shares a cell must not depend on how often it happened to stand: the rarest of equals stand too rarely all
        # together, and their sum would move back in every window. So only the clearly frequent ones are taken out.
        alone = sum(counts[value] * CATEGORY_CELLS >= 2 * column.valid for value in values)
        values[alone:] = sorted(values[alone:], key=lambda value: (crc32(value.encode()), value))
    shared = CATEGORY_CELLS - alone
    groups = {value: rank if rank < alone else alone + rank % shared for rank, value in enumerate(values)}
    size = (max(groups.values()) + 1 if groups else 0) + 2
    return Cells(False, np.zeros(0), np.zeros(size - 2), groups, column.rest > 0, size)


def block_edges(start: int, end: int) -> Counts:
    """The edges of a reference's time blocks, from the first instant to after the last, both in microseconds.

    Blocks are whole days (or 2, 3, 7, 14 ... days) where there are enough of them, for the hours of a day differ
    from each other in every window alike; else whole hours. At most 96. Fewer than eight tell nothing.
    """
    length = max(end - start, 1)
    lengths = [days * _DAY for days in _DAYS]
    if length < _FEWEST_DAYS * _DAY:
        lengths = [hours * _DAY // 24 for hours in _HOURS] + lengths
    each = next((each for each in lengths if length / each <= MAX_BLOCKS - 1), length // (MAX_BLOCKS - 2) + 1)
    first = start // each * each
    return np.arange(first, end + each + 1, each, dtype=np.int64)[: (end - first) // each + 2]
