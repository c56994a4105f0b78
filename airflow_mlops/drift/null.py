"""What chance alone does to a column's distance from its reference, and to the largest distance of them all.

A window of ``n`` rows and a reference of ``N`` rows of the *same* process still differ, for two reasons:

- **rows are drawn.** Independent rows give multinomial noise at ``n_eff = n N / (n + N)``: the reference's own noise
  counts too (leaving it out alarms on every window that is larger than the reference).
- **days differ.** Rows of one day resemble each other, and neighbouring days too. How much more the reference's time
  blocks differ than independent rows would is estimated per column (variance components: Searle, Casella and
  McCulloch, *Variance Components*, 1992, chapter 3). What is left after the multinomial part is resampled in runs of
  neighbouring blocks, the same blocks for all columns (circular block bootstrap: Politis and Romano, 1992), with the
  run length of Andrews (*Econometrica* 59, 1991); what runs of that length still miss of a longer memory is added as
  that of a first-order autoregression.

So a column whose rows are independent gets the sharp multinomial null, and one that follows the weather gets a wide
one, at any ratio of window to block. A variance that was estimated from few blocks is itself uncertain: every replicate
is divided by a chi-square draw of its degrees of freedom, which makes a normal tail that of Student's t.

Every distance is a norm of the difference of cell shares, so it is proportional to it. Distances are put on one scale
(median and upper tail), and the maximum over all columns is taken within each replicate (Westfall and Young,
*Resampling-Based Multiple Testing*, 1993, the maxT procedure): the chance that *any* column alarms is the declared
rate, without Bonferroni, and columns that move together count as what they are. Without time blocks columns are drawn
independently, which for normal deviations can only overstate the maximum (Šidák, JASA 62, 1967).

Beyond what the replicates reach, the maximum's tail is exponential: norms of normal deviations fall faster, so it errs
on the side of silence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

REPLICATES = 1000
_TAIL = 0.05


class Group(NamedTuple):
    """Columns of one kind, side by side; cells that a column does not have are empty on both sides."""

    ordered: bool
    """Whether cells follow each other, as those of numbers do."""
    counts: Floats
    """Rows of the reference, ``(columns, cells)``."""
    gaps: Floats
    """From a cell's value to the next one's, ``(columns, cells - 1)``; used where ordered."""
    blocks: Floats | None
    """Rows of the reference by time block, ``(blocks, columns, cells)``."""


class Metric(NamedTuple):
    """How differences of shares become distances: weights of squares, and of absolute values where there are any."""

    ordered: bool
    squares: Floats
    gaps: Floats


def metric(group: Group, rows: Floats) -> Metric:
    """The weights for windows of ``rows`` valid rows a column.

    Numbers: Anderson and Darling's distance of distribution functions (*Ann. Math. Stat.* 23, 1952), which sees the
    middle and the tails alike, and Wasserstein's within the reference's range. Categories: Pearson's chi-square. A cell
    that is (almost) empty in the reference weighs as if it held one row of the window.
    """
    shares = _shares(group.counts)
    least = 1.0 / np.maximum(rows, 1.0)[:, None]
    if not group.ordered:
        return Metric(False, 1.0 / (shares + least), group.gaps)
    below = np.cumsum(shares, axis=1)[:, :-1]
    measure = (shares[:, :-1] + shares[:, 1:]) / 2
    return Metric(True, measure / (below * (1 - below) + least), group.gaps)


def distances(difference: Floats, how: Metric) -> Floats:
    """The distances of differences of shares ``(..., columns, cells)``: ``(statistics, ..., columns)``."""
    if not how.ordered:
        return np.asarray(np.sqrt(np.einsum("...k,...k->...", difference * difference, how.squares))[None])
    steps = np.cumsum(difference, axis=-1)[..., :-1]
    rank = np.sqrt(np.einsum("...k,...k->...", steps * steps, how.squares))
    np.abs(steps, out=steps)
    return np.stack([rank, np.einsum("...k,...k->...", steps, how.gaps)])


def _shares(counts: Floats) -> Floats:
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1.0))


class Memory(NamedTuple):
    """What the time blocks of a group's columns say, each an array over columns."""

    scale: Floats
    """By how much a block's deviation is multiplied to keep only what is more than independent rows."""
    follow: Floats
    """The correlation of neighbouring blocks, of that part."""
    known: Floats
    """Degrees of freedom that the part's variance was estimated with."""
    deviations: Floats
    """``(blocks, columns, cells)``, in shares of a mean block."""


def memory(group: Group, how: Metric) -> Memory | None:
    """Split the variance between time blocks into what independent rows give and the rest."""
    if group.blocks is None or len(group.blocks) < 8:
        return None
    blocks = group.blocks.astype(np.float64)
    count = len(blocks)
    shares = _shares(group.counts)
    rows = blocks.sum(axis=2, keepdims=True)
    mean = np.maximum(rows.mean(axis=0), 1e-9)
    deviations = (blocks - rows * shares) / mean
    if how.ordered:
        steps = np.cumsum(deviations, axis=2)[..., :-1]
        below = np.cumsum(shares, axis=1)[:, :-1]
        chance = np.sum(how.squares * below * (1 - below), axis=1) / mean[:, 0]
    else:
        steps = deviations
        chance = np.sum(how.squares * shares * (1 - shares), axis=1) / mean[:, 0]
    weighted = steps * np.sqrt(how.squares)
    gram = np.einsum("bck,dck->cbd", weighted, weighted, optimize=True)
    total = np.trace(gram, axis1=1, axis2=2) / (count - 1)
    lagged = np.trace(gram, offset=1, axis1=1, axis2=2) / (count - 1)
    modes = np.maximum(np.sum(gram * gram, axis=(1, 2)) / (count - 1) ** 2 - total**2 / count, 1e-300)
    width = np.maximum(total**2 / modes, 1.0)
    error = total * np.sqrt(2 / (width * count))
    rest = np.maximum(total - chance, 0.0)
    follow = np.zeros_like(rest)
    lost = np.zeros_like(rest)
    for _ in range(5):
        # Deviations from the blocks' own mean: each product is too small by the mean's variance.
        follow = np.clip((lagged + lost) / np.maximum(np.hypot(rest + lost, error), 1e-300), 0.0, 0.9)
        lost = rest * (1 + follow) / (1 - follow) / count
    effective = count * (1 - follow**2) / (1 + follow**2)
    scale = np.sqrt(np.where(rest > 0, rest + lost, 0.0) / np.maximum(total, 1e-300))
    return Memory(scale, follow, width * effective, deviations)


def _growth(follow: Floats, length: float) -> Floats:
    """How much more than ``length`` the variance of a sum of so many autoregressive terms is, by their number."""
    if length <= 1:
        return np.ones_like(follow)
    power = follow**length
    return np.asarray((1 + follow) / (1 - follow) - 2 * follow * (1 - power) / (length * (1 - follow) ** 2))


class Null(NamedTuple):
    """The distribution of every distance, and of the largest on the common scale, when nothing has moved."""

    centre: tuple[Floats, ...]
    """Each group's medians, ``(statistics, columns)``."""
    spread: tuple[Floats, ...]
    """Each group's upper tails: a distance of ``centre + z spread`` is ``z``."""
    usual: tuple[Floats, ...]
    """Each group's 99% points: what chance gives one column once in a hundred windows."""
    largest: Floats
    """The maxima of the replicates, sorted."""

    def z(self, group: int, found: Floats) -> Floats:
        """Distances on the common scale."""
        return np.asarray((found - self.centre[group]) / self.spread[group])

    def threshold(self, rate: float) -> float:
        """What the largest z exceeds with this chance."""
        start, slope = self._tail()
        if rate >= _TAIL:
            return float(np.quantile(self.largest, 1 - rate))
        return start + slope * math.log(_TAIL / rate)

    def chance(self, z: float) -> float:
        """How often chance gives a largest z of at least this."""
        start, slope = self._tail()
        if z <= start:
            return float(np.mean(self.largest >= z))
        return _TAIL * math.exp(-(z - start) / slope)

    def _tail(self) -> tuple[float, float]:
        start = float(np.quantile(self.largest, 1 - _TAIL))
        above = self.largest[self.largest > start]
        return start, max(float(np.mean(above - start)) if len(above) else 0.0, 1e-6)


def calibrate(
    groups: list[Group], rows: list[Floats], span: float | None, seed: int, replicates: int = REPLICATES
) -> Null:
    """The null of windows of ``rows`` valid rows a column (one array a group).

    Args:
        groups: the reference.
        rows: valid rows of the window, by column of each group.
        span: how many of the reference's time blocks the window lasts; may be a fraction. None: without blocks.
        seed: of every random draw.
        replicates: how many windows are drawn.
    """
    return standardised(draws(groups, rows, span, seed, replicates), rows)


def draws(
    groups: list[Group], rows: list[Floats], span: float | None, seed: int, replicates: int = REPLICATES
) -> list[Floats]:
    """Distances of windows without drift, each group's ``(statistics, replicates, columns)``."""
    drawn = differences(groups, rows, span, seed, replicates)
    return [distances(each, metric(group, valid)) for each, group, valid in zip(drawn, groups, rows, strict=True)]


def differences(
    groups: list[Group], rows: list[Floats], span: float | None, seed: int, replicates: int = REPLICATES
) -> list[Floats]:
    """Shares of windows without drift less those of their references, each ``(replicates, columns, cells)``."""
    random = np.random.default_rng(seed)
    memories = [
        memory(group, metric(group, valid)) if span is not None else None
        for group, valid in zip(groups, rows, strict=True)
    ]
    weights, run, count = _weights(memories, span or 1.0, random, replicates)
    found = []
    for group, valid, kept in zip(groups, rows, memories, strict=True):
        difference = _noise(group.counts, valid, random, replicates)
        if kept is not None and weights is not None:
            difference += _between(kept, weights, span or 1.0, run, count, random)
        found.append(difference)
    return found


def standardised(found: list[Floats], rows: list[Floats]) -> Null:
    """Put the distances of every statistic and column on one scale, and take the largest of each replicate."""
    centre, spread, usual, largest = [], [], [], np.full(found[0].shape[1], -np.inf)
    for drawn, valid in zip(found, rows, strict=True):
        middle = np.median(drawn, axis=1)
        high = np.quantile(drawn, 0.9, axis=1)
        tail = np.mean(np.maximum(drawn - high[:, None], 0.0), axis=1) / 0.1
        # Of one normal variable the mean beyond the 90% point of its size lies 2.063 - 0.674 = 1.389 above the median.
        scale = np.maximum((high + tail - middle) / 1.389, 1e-3 / np.sqrt(np.maximum(valid, 1.0)))
        centre.append(middle)
        spread.append(scale)
        usual.append(np.quantile(drawn, 0.99, axis=1))
        z = (drawn - middle[:, None]) / scale[:, None]
        largest = np.maximum(largest, z.max(axis=(0, 2)))
    return Null(tuple(centre), tuple(spread), tuple(usual), np.sort(largest))


def _noise(counts: Floats, rows: Floats, random: np.random.Generator, replicates: int) -> Floats:
    """Differences of shares of independent rows, ``(replicates, columns, cells)``."""
    total = counts.sum(axis=1)
    shares = _shares(counts)
    effective = np.maximum(rows * total / np.maximum(rows + total, 1.0), 1.0)
    drawn = random.standard_normal((replicates, *counts.shape), dtype=np.float32)
    # Column by column, so that what is between stays in the processor's cache.
    for column, (share, size) in enumerate(zip(shares.astype(np.float32), effective.astype(np.float32), strict=True)):
        normal = drawn[:, column]
        # Poisson counts to the second order (Cornish and Fisher, 1938): in cells of few rows they are skewed.
        poisson = (normal * normal - 1) * np.where(share > 0, 1 / (6 * size), 0).astype(np.float32)
        poisson += normal * np.sqrt(share / size)
        np.maximum(poisson, -share, out=poisson)
        poisson -= poisson.sum(axis=1, keepdims=True) * share
        drawn[:, column] = poisson
    return drawn


def _weights(
    memories: list[Memory | None], span: float, random: np.random.Generator, replicates: int
) -> tuple[Floats | None, int, int]:
    """The blocks of a window less those of a reference, ``(replicates, blocks)``, and the run length."""
    kept = [each for each in memories if each is not None]
    if not kept:
        return None, 1, 0
    count = len(kept[0].deviations)
    follow = max(float(np.max(each.follow * each.scale**2)) for each in kept)
    andrews = 1.1447 * (4 * follow**2 / (1 - follow**2) ** 2 * count) ** (1 / 3)
    run = int(np.clip(round(andrews), 1, max(1, min(math.ceil(span), count // 6))))
    return _runs(random, replicates, count, span, run) - _runs(random, replicates, count, count, run), run, count


def _runs(random: np.random.Generator, replicates: int, count: int, length: float, run: int) -> Floats:
    """Mean weights of ``length`` blocks drawn in circular runs."""
    pieces = max(1, math.ceil(length / run - 1e-9))
    starts = random.integers(0, count, (replicates, pieces))
    each = np.ones(pieces)
    each[-1] = max(length / run - (pieces - 1), 1e-9) if length > run else 1.0
    weights = np.zeros((replicates, count))
    np.add.at(weights, (np.arange(replicates)[:, None], starts), np.broadcast_to(each, starts.shape))
    spread = sum(np.roll(weights, step, axis=1) for step in range(run))
    return np.asarray(spread / (run * each.sum()), dtype=np.float32)


def _between(kept: Memory, weights: Floats, span: float, run: int, count: int, random: np.random.Generator) -> Floats:
    """What days differ by beyond independent rows, ``(replicates, columns, cells)``."""
    length = max(span, 1.0)
    pieces = min(run, length)
    share = kept.scale**2
    error = np.sqrt((1 - kept.follow**2) / count)
    wanted, further = (
        _growth(follow, length) / length + _growth(follow, count) / count
        for follow in (np.minimum(kept.follow + times * error, 0.97) for times in (1, 2))
    )
    doubt = further / wanted - 1
    known = 2 / (2 / kept.known + doubt**2)
    drawn = 1 + share * (_growth(kept.follow, pieces) - 1), 1 + share * (_growth(kept.follow, run) - 1)
    more = np.sqrt(np.maximum(wanted / (drawn[0] / length + drawn[1] / count), 1.0))
    deviations = (kept.deviations * (kept.scale * more)[None, :, None]).astype(np.float32)
    found = (weights @ deviations.reshape(count, -1)).reshape(len(weights), *deviations.shape[1:])
    unsure = np.sqrt(known / random.chisquare(known, (len(weights), len(known)))).astype(np.float32)
    return np.asarray(found * unsure[..., None])
