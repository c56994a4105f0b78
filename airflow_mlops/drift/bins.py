"""A column of numbers as a sparse histogram on one chain of nested grids, so that those of any files add up exactly.

Level 0 of the chain gives every float64 a bin of its own: up to `LIMIT` different numbers are held exactly. Each of
the next levels joins neighbours, first by halving the number of bins in an octave (until a bin is 1/128 to 1/256 of its
distance from 0 wide) and from then on by doubling the width of the bins around 0, where the grid is linear: an asinh in
straight pieces. All edges are sums of powers of two, every bin of a level is a union of bins of the level below, and
the bins below 0 mirror those above.

A histogram stands at the finest level that needs at most `LIMIT` bins. That level follows from the values alone,
whatever files or batches they came in: merging is exact, in any order. Beside its count a bin knows where in it the
mean of its values lies, which makes distances between two histograms far finer than the bins are wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

LIMIT = 1024
"""The most bins of a column."""
_MANTISSA = 52
_COARSEST = 7
_FLOORLESS = _MANTISSA - _COARSEST
_LOWEST = -1000
LAST = _FLOORLESS + 2015
"""The coarsest level: 256 linear bins on either side of 0."""
_DENSE = 1 << 16
_BLOCK = 8192


def keys(values: Floats, level: int) -> Integers:
    """The bin of each finite value at a level, of the same shape; rising with the value."""
    out = np.empty(len(values), np.int64)
    # In blocks, so that what is between stays in the processor's cache: four times faster than at once.
    for start in range(0, len(values), _BLOCK):
        # Zero is added so that -0.0 lies where 0.0 does.
        block = values[start : start + _BLOCK] + 0.0
        out[start : start + _BLOCK] = _magnitude_keys(np.abs(block), level) ^ (block.view(np.int64) >> 63)
    return out


def _magnitude_keys(values: Floats, level: int) -> Integers:
    if level <= _FLOORLESS:
        return values.view(np.int64) >> level
    knee, first = _knee(level)
    steps = (np.minimum(values, knee) * 2.0 ** -_width(level)).astype(np.int32)
    return (np.maximum(values, knee).view(np.int64) >> _FLOORLESS) - first + steps


def _width(level: int) -> int:
    """The binary exponent of the width of the bins around 0."""
    return _LOWEST + level - _FLOORLESS


def _knee(level: int) -> tuple[float, np.int64]:
    """Up to where the grid is linear, and the floorless key of that value."""
    knee = np.float64(2.0 ** (_width(level) + _COARSEST + 1))
    return float(knee), knee.view(np.int64) >> _FLOORLESS


def edges(index: Integers, level: int) -> tuple[Floats, Floats]:
    """The lower and upper edges of bins; at level 0 both are the one value the bin is for."""
    sign = index >> 63
    magnitude = index ^ sign
    near, far = _edge(magnitude, level), _edge(magnitude + (level > 0), level)
    return np.where(sign == 0, near, -far), np.where(sign == 0, far, -near)


def _edge(magnitude: Integers, level: int) -> Floats:
    if level <= _FLOORLESS:
        # The bin that ends with the largest float would end at infinity.
        return np.minimum((magnitude << level).view(np.float64), np.finfo(np.float64).max)
    _, first = _knee(level)
    linear = 1 << (_COARSEST + 1)
    beyond = ((np.maximum(magnitude - linear, 0) + first) << _FLOORLESS).view(np.float64)
    beyond = np.minimum(beyond, np.finfo(np.float64).max)
    return np.where(magnitude <= linear, np.minimum(magnitude, linear) * 2.0 ** _width(level), beyond)


def coarser(index: Integers, level: int, to: int) -> Integers:
    """The bins of a coarser level that hold these; not unique."""
    if level == to:
        return index
    sign = index >> 63
    return _magnitude_keys(_edge(index ^ sign, level), to) ^ sign


def fitting(index: Integers, level: int) -> int:
    """The finest level, from this one on, at which rising bins come to at most `LIMIT`."""
    low, high = level, LAST
    while low < high:
        middle = (low + high) // 2
        if 1 + np.count_nonzero(np.diff(coarser(index, level, middle))) <= LIMIT:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True, eq=False)
class Bins:
    """A sparse histogram of finite numbers; the arrays have one entry a bin that holds anything."""

    level: int
    """Where in the chain of grids it stands."""
    index: Integers
    """The bins, rising."""
    count: Integers
    """How many values each holds."""
    place: npt.NDArray[np.float32]
    """Where in its bin the mean of its values lies: 0 at the lower edge, 1 at the upper."""

    @cached_property
    def lower(self) -> Floats:
        """The lower edge of each bin."""
        return edges(self.index, self.level)[0]

    @cached_property
    def upper(self) -> Floats:
        """The upper edge of each bin."""
        return edges(self.index, self.level)[1]

    @cached_property
    def mean(self) -> Floats:
        """The mean of each bin's values."""
        return self.lower + self.place.astype(np.float64) * (self.upper - self.lower)

    @cached_property
    def rows(self) -> int:
        """How many values there are in all."""
        return int(self.count.sum())

    @property
    def exact(self) -> bool:
        """Whether every bin stands for one value."""
        return self.level == 0

    def at(self, level: int) -> Bins:
        """The same values at a coarser level."""
        if level == self.level:
            return self
        return _bins(level, coarser(self.index, self.level, level), self.count, self.mean)

    def merge(self, other: Bins) -> Bins:
        """The histogram of both."""
        level = max(self.level, other.level)
        pair = self.at(level), other.at(level)
        index, count, mean = (
            np.concatenate([getattr(each, name) for each in pair]) for name in ("index", "count", "mean")
        )
        return within_limit(_bins(level, index, count, mean))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Bins)
            and self.level == other.level
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("index", "count", "place"))
        )

    def __hash__(self) -> int:
        return hash((self.level, self.index.tobytes(), self.count.tobytes()))


EMPTY = Bins(0, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
"""The histogram of no values."""


def within_limit(bins: Bins) -> Bins:
    """The histogram at the finest level with at most `LIMIT` bins."""
    return bins if len(bins.index) <= LIMIT else bins.at(fitting(bins.index, bins.level))


def _bins(level: int, index: Integers, count: Integers, mean: Floats) -> Bins:
    """Bins from parts in any order, of which several may belong to one bin."""
    bins, inverse = np.unique(index, return_inverse=True)
    counts = np.zeros(len(bins), np.int64)
    np.add.at(counts, inverse, count)
    lower, upper = edges(bins, level)
    above = np.bincount(inverse, weights=count * (mean - lower[inverse]), minlength=len(bins))
    return Bins(level, bins, counts, _place(above / np.maximum(counts, 1), upper - lower))


def _place(above: Floats, width: Floats) -> npt.NDArray[np.float32]:
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(width > 0, above / width, 0.0)
    rounded: npt.NDArray[np.float32] = np.clip(np.nan_to_num(place), 0.0, 1.0).astype(np.float32)
    return rounded


def of_distinct(values: Floats, count: Integers) -> Bins:
    """The histogram of different finite values, in any order, and how often each stands."""
    # Both zeros are one value here.
    index, inverse = np.unique(keys(values, 0), return_inverse=True)
    counts = np.zeros(len(index), np.int64)
    np.add.at(counts, inverse, count)
    return within_limit(Bins(0, index, counts, np.zeros(len(index), np.float32)))


def histogram(values: Floats, level: int) -> Bins:
    """The histogram of finite values.

    Args:
        values: of shape ``(rows,)``, at least one.
        level: one that is not coarser than the values need, above 0; see `first_level`.
    """
    index = keys(values, level)
    first = int(index.min())
    span = int(index.max()) - first + 1
    if span <= _DENSE:
        index -= first
        counts, totals = np.bincount(index, minlength=span), np.bincount(index, weights=values, minlength=span)
        there = np.flatnonzero(counts)
        bins, counts, totals = there + first, counts[there], totals[there]
    else:
        bins, inverse, counts = np.unique(index, return_inverse=True, return_counts=True)
        totals = np.bincount(inverse, weights=values)
    lower, upper = edges(bins, level)
    return within_limit(Bins(level, bins, counts, _place(totals / counts - lower, upper - lower)))


def first_level(values: Floats) -> int:
    """A level that is not coarser than the values need: that of some thousands of them."""
    found = np.unique(keys(values[:: len(values) // (16 * LIMIT) + 1], 0))
    return 0 if len(found) <= LIMIT else fitting(found, 0)
