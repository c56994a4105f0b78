"""How far two columns lie apart, from their profiles.

Categories, and numbers of at most `LIMIT` different values, are compared exactly. Of other numbers the profile holds a
histogram that knows the mean of each bin: a distance is exact but for the bins in which the two distributions cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from airflow_mlops.drift.bins import Bins, Floats, Integers, edges
from airflow_mlops.drift.profile import ColumnProfile

_LEAST_NORM = 0.001
_LEAST_SHARE = 1e-4
_FEW = 20


class ChiSquare(NamedTuple):
    """The statistic of a test, and its degrees of freedom."""

    statistic: float
    freedom: int


class _Aligned(NamedTuple):
    """Two histograms on the same bins: those that either has values in."""

    counts: tuple[Integers, Integers]
    means: tuple[Floats, Floats]
    lower: Floats
    upper: Floats


def _aligned(one: Bins, other: Bins) -> _Aligned:
    level = max(one.level, other.level)
    pair = one.at(level), other.at(level)
    index = np.union1d(pair[0].index, pair[1].index)
    lower, upper = edges(index, level)
    counts, means = [], []
    for each in pair:
        at = np.searchsorted(index, each.index)
        count, mean = np.zeros(len(index), np.int64), lower.copy()
        count[at], mean[at] = each.count, each.mean
        counts.append(count)
        means.append(mean)
    return _Aligned((counts[0], counts[1]), (means[0], means[1]), lower, upper)


def wasserstein(reference: ColumnProfile, current: ColumnProfile) -> float:
    """How far the numbers moved, in standard deviations of the reference.

    The first Wasserstein distance, the area between the two distribution functions (Vaserstein, 1969; in one dimension
    Vallender, 1974), divided by the standard deviation of the reference, or by 0.001 where that is less: Evidently's
    ``wasserstein``. Exact where no bin holds a crossing of the two functions, for then the means of the bins tell the
    area; a crossing is taken to lie where straight lines cross. NaN where a side has no number.
    """
    if not reference.bins.rows or not current.bins.rows:
        return float("nan")
    both = _aligned(reference.bins, current.bins)
    shares = [count / count.sum() for count in both.counts]
    difference = shares[0] - shares[1]
    after = np.cumsum(difference)
    before = np.concatenate([[0.0], after[:-1]])
    width = both.upper - both.lower
    # The integral of F - G over a bin, from the lower edge so that nothing large cancels.
    above = [share * (mean - both.lower) for share, mean in zip(shares, both.means, strict=True)]
    inside = np.abs(width * after - (above[0] - above[1]))
    crossing = before * after < 0
    change = np.where(crossing, np.abs(after - before), 1.0)
    triangles = width * (before**2 + after**2) / (2 * change)
    inside = np.where(crossing, np.maximum(inside, triangles), inside)
    between = np.abs(after[:-1]) * (both.lower[1:] - both.upper[:-1])
    with np.errstate(over="ignore", invalid="ignore"):
        distance = float(inside.sum() + between.sum())
        norm = reference.std
        return distance / max(norm, _LEAST_NORM) if np.isfinite(norm) else distance / float(np.finfo(float).max)


def ks_distance(reference: ColumnProfile, current: ColumnProfile) -> float:
    """The largest difference between the two distribution functions (Kolmogorov, 1933; Smirnov, 1939).

    Exact for numbers of few different values; of others it is taken at the edges of the bins, and too low by at most
    the larger share of a single bin.
    """
    if not reference.bins.rows or not current.bins.rows:
        return float("nan")
    counts = _aligned(reference.bins, current.bins).counts
    shares = [np.cumsum(count) / count.sum() for count in counts]
    return float(np.abs(shares[0] - shares[1]).max())


def shares(reference: ColumnProfile, current: ColumnProfile, bins: int | None = None) -> tuple[Floats, Floats]:
    """The shares of the two sides in common cells, each summing to 1; all distances of categories are made of them.

    Categories are their own cells, and so are numbers of at most 20 different values in the reference. Other numbers
    fall into cells of equal width over the range of both sides, as Evidently cuts them (Sturges, 1926).

    Args:
        reference: what is held against.
        current: what is judged.
        bins: cut numbers into so many cells of about equal weight in the reference instead.
    """
    if reference.kind == "category":
        names = dict.fromkeys([*reference.counts, *current.counts])
        counts = [
            np.array([*(each.counts.get(name, 0) for name in names), each.rest], float) for each in (reference, current)
        ]
    else:
        counts = _number_cells(reference, current, bins)
    counts = [each[(counts[0] > 0) | (counts[1] > 0)] for each in counts]
    with np.errstate(invalid="ignore"):
        return counts[0] / counts[0].sum(), counts[1] / counts[1].sum()


def _number_cells(reference: ColumnProfile, current: ColumnProfile, bins: int | None) -> list[Floats]:
    both = _aligned(reference.bins, current.bins)
    counts = [each.astype(float) for each in both.counts]
    if bins is None and reference.bins.exact and len(reference.bins.index) <= _FEW:
        if current.bins.exact:
            return counts
        # What the reference never had needs no cells of its own but one.
        known = np.isin(both.lower, reference.bins.lower)
        return [np.append(each[known], each[~known].sum()) for each in counts]
    if bins is not None:
        cut = np.interp(np.arange(1, bins) / bins, np.cumsum(counts[0]) / counts[0].sum(), both.upper)
        cut = np.unique(cut)
    else:
        rows = reference.bins.rows + current.bins.rows
        least, most = min(_ends(reference, current)), max(_ends(reference, current))
        cut = np.linspace(least, most, int(np.ceil(np.log2(rows) + 1)) + 1)[1:-1]
    return [_cut(count, mean, both, cut) for count, mean in zip(counts, both.means, strict=True)]


def _ends(*columns: ColumnProfile) -> list[float]:
    return [end for each in columns for end in (each.min, each.max) if end is not None]


def _cut(counts: Floats, means: Floats, both: _Aligned, cut: Floats) -> Floats:
    """Counts of bins as counts of cells between cuts; a bin that is cut is shared out evenly."""
    points = np.concatenate([both.lower, both.upper])
    order = np.argsort(points, kind="stable")
    total = np.cumsum(counts)
    below = np.concatenate([total - counts, total])[order]
    points = points[order]
    at = np.interp(cut, points, below)
    if np.array_equal(both.lower, both.upper):
        # Single values belong to the cell that begins with them.
        found = np.searchsorted(both.lower, cut, side="left")
        at = np.concatenate([[0.0], total])[found]
    return np.diff(np.concatenate([[0.0], at, [total[-1]]]))


def jensen_shannon(reference: ColumnProfile, current: ColumnProfile) -> float:
    """The Jensen-Shannon distance, from 0 to 0.83 (Lin, 1991; Endres and Schindelin, 2003).

    Evidently's ``jensenshannon``; exact for categories and for numbers of at most 20 different values.
    The square root of the mean of both sides' Kullback-Leibler divergences from their mixture, with natural logarithms.
    NaN where a side has no value.
    """
    one, other = shares(reference, current)
    if not len(one) or np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    middle = (one + other) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergences = [np.where(each > 0, each * np.log(each / middle), 0.0).sum() for each in (one, other)]
    return float(np.sqrt(max(0.0, sum(divergences) / 2)))


def psi(reference: ColumnProfile, current: ColumnProfile) -> float:
    """The population stability index (Siddiqi, *Credit Risk Scorecards*, 2006): Evidently's ``psi``.

    The symmetric Kullback-Leibler divergence of the shares. An empty cell counts as 0.0001, or as a millionth of the
    least share where that is not above 0.0001.
    """
    sides = list(shares(reference, current))
    for each in sides:
        least = each[each > 0].min(initial=1.0)
        each[each == 0] = least / 1e6 if least <= _LEAST_SHARE else _LEAST_SHARE
    one, other = sides
    return float(((one - other) * np.log(one / other)).sum())


def total_variation(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Half the sum of the differences of the shares: the part of the rows that changed places (from 0 to 1)."""
    one, other = shares(reference, current)
    return float(np.abs(one - other).sum() / 2)


def chi_square(reference: ColumnProfile, current: ColumnProfile) -> ChiSquare:
    """Pearson's test that both sides are drawn from one distribution (Pearson, 1900), on a table of two rows.

    Unlike Evidently's, which holds the data against the reference as if that were the truth, it knows that the
    reference is a sample as well.
    """
    one, other = shares(reference, current)
    rows = np.array([_compared(reference), _compared(current)], float)
    table = np.stack([one, other]) * rows[:, None]
    if table.shape[1] < 2 or not rows.all():
        return ChiSquare(0.0, 0)
    expected = table.sum(axis=0) * rows[:, None] / rows.sum()
    return ChiSquare(float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1)


def _compared(column: ColumnProfile) -> int:
    return column.valid if column.kind == "category" else column.bins.rows


def null_shares(reference: ColumnProfile, current: ColumnProfile) -> tuple[float, float]:
    """The share of nulls and NaN in the reference and in the data."""
    first, second = (each.missing / each.rows if each.rows else 0.0 for each in (reference, current))
    return first, second


def new_categories(reference: ColumnProfile, current: ColumnProfile) -> tuple[str, ...]:
    """Categories that the reference never had, the most frequent first; none can be told where it is not exact."""
    return () if reference.error else tuple(name for name in current.counts if name not in reference.counts)


def vanished_categories(reference: ColumnProfile, current: ColumnProfile) -> tuple[str, ...]:
    """Categories that the data no longer have, the most frequent of the reference first."""
    return () if current.error else tuple(name for name in reference.counts if name not in current.counts)


def quantiles(column: ColumnProfile, at: Sequence[float] | Floats) -> Floats:
    """The quantiles of a column's numbers, of shape ``(len(at),)``.

    Exact for numbers of few different values; of others a quantile lies in its bin, on straight lines through the bin's
    mean.
    """
    bins = column.bins
    total = np.cumsum(bins.count)
    wanted = np.asarray(at, float) * total[-1]
    found = np.minimum(np.searchsorted(total, wanted, side="left"), len(total) - 1)
    into = np.clip((wanted - (total - bins.count)[found]) / bins.count[found], 0.0, 1.0)
    place = bins.place.astype(float)[found]
    # Two straight pieces through the middle, such that the mean of the bin is kept.
    middle = np.clip(2 * place - 0.5, 0.0, 1.0)
    inside = np.where(into < 0.5, 2 * into * middle, middle + (2 * into - 1) * (1 - middle))
    values = bins.lower[found] + inside * (bins.upper - bins.lower)[found]
    inner: Floats = np.clip(values, column.min, column.max)
    return inner
