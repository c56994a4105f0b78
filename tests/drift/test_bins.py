"""The grid: nested, in order, and the same however the values are cut into parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_mlops.drift.bins import (
    EMPTY,
    LAST,
    LIMIT,
    Bins,
    coarser,
    edges,
    first_level,
    fitting,
    histogram,
    keys,
    of_distinct,
)

FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
LEVELS = st.integers(0, LAST) | st.integers(0, 60) | st.integers(1000, 1100)


def bins_of(values: list[float] | np.ndarray) -> Bins:
    values = np.asarray(values, float)
    level = first_level(values)
    if level:
        return histogram(values, level)
    found, counts = np.unique(values + 0.0, return_counts=True)
    return of_distinct(found, counts)


@example([4.0, -1.0], 0)
@given(FLOATS, LEVELS)
def test_a_value_lies_in_its_bin_and_bins_keep_the_order(values: list[float], level: int) -> None:
    numbers = np.sort(np.array(values) + 0.0)
    index = keys(numbers, level)
    assert (index[1:] >= index[:-1]).all()
    lower, upper = edges(index, level)
    assert (lower <= numbers).all() and (numbers <= upper).all()
    if level == 0:
        assert (lower == numbers).all() and (upper == numbers).all()


@given(FLOATS, st.tuples(LEVELS, LEVELS, LEVELS))
def test_grids_are_nested_whatever_lies_between(values: list[float], levels: tuple[int, ...]) -> None:
    numbers = np.array(values)
    fine, middle, coarse = sorted(levels)
    wanted = keys(numbers, coarse)
    assert (coarser(keys(numbers, fine), fine, coarse) == wanted).all()
    assert (coarser(coarser(keys(numbers, fine), fine, middle), middle, coarse) == wanted).all()


def test_bins_are_narrow_where_values_are() -> None:
    random = np.random.default_rng(0)
    for center, spread in ((0, 1), (1e9, 1), (-1e-6, 1e-9), (1e300, 1e298)):
        values = random.normal(center, spread, 50_000)
        found = bins_of(values)
        assert LIMIT // 4 < len(found.index) <= LIMIT
        assert np.median(found.upper - found.lower) < 0.05 * spread


def test_few_values_are_held_exactly() -> None:
    values = np.repeat([-1e300, -1.5, -0.0, 0.0, 0.1, 7.0, 1e-308], 3)
    found = bins_of(values)
    assert found.exact and found.rows == len(values)
    assert list(zip(found.lower, found.count, strict=True)) == [
        (-1e300, 3), (-1.5, 3), (0.0, 6), (1e-308, 3), (0.1, 3), (7.0, 3),
    ]  # fmt: skip
    assert (found.mean == found.lower).all()


WIDE = st.tuples(
    st.integers(1, 4000), st.sampled_from([1e-9, 1.0, 40.0, 1e12]), st.sampled_from([0.0, 1e6]), st.integers(0, 99)
)


@settings(deadline=None, max_examples=40)
@given(st.lists(WIDE, min_size=1, max_size=4), st.randoms())
def test_parts_in_any_order_add_up_to_the_whole(parts: list[tuple[int, float, float, int]], shuffle: object) -> None:
    arrays = [np.random.default_rng(seed).standard_t(2, n) * scale + at for n, scale, at, seed in parts]
    whole = np.concatenate(arrays)
    shuffle.shuffle(arrays)  # type: ignore[attr-defined]
    merged = EMPTY
    for each in arrays:
        merged = merged.merge(bins_of(each))
    wanted = bins_of(whole)
    assert merged.level == wanted.level
    assert (merged.index == wanted.index).all() and (merged.count == wanted.count).all()
    # Means are rounded like any sum, which bins of a few neighbouring floats show.
    allowed = 1e-4 * (wanted.upper - wanted.lower) + 2e-12 * np.abs(wanted.mean)
    assert (np.abs(merged.mean - wanted.mean) <= allowed).all()
    assert len(merged.index) <= LIMIT and merged.rows == len(whole)


@settings(deadline=None, max_examples=20)
@given(st.tuples(WIDE, WIDE))
def test_merging_is_the_same_either_way_round(parts: tuple[tuple[int, float, float, int], ...]) -> None:
    one, other = (bins_of(np.random.default_rng(seed).normal(at, scale, n)) for n, scale, at, seed in parts)
    assert one.merge(other) == other.merge(one)
    assert one.merge(EMPTY) == one


def test_the_level_is_the_finest_that_fits() -> None:
    values = np.random.default_rng(1).lognormal(0, 2, 20_000)
    found = bins_of(values)
    assert len(np.unique(keys(values, found.level))) <= LIMIT < len(np.unique(keys(values, found.level - 1)))
    assert fitting(np.unique(keys(values, 0)), 0) == found.level


def test_the_means_of_bins_are_those_of_their_values() -> None:
    values = 1e6 + np.random.default_rng(2).exponential(size=30_000)
    found = bins_of(values)
    which = np.searchsorted(found.index, keys(values, found.level))
    means = np.bincount(which, weights=values) / np.bincount(which)
    assert found.mean == pytest.approx(means, abs=1e-6 * (found.upper - found.lower).max())


def test_every_float_fits_at_the_last_level() -> None:
    random = np.random.default_rng(3)
    values = np.ldexp(random.uniform(-1, 1, 200_000), random.integers(-1000, 1024, 200_000))
    assert len(bins_of(values).index) <= LIMIT
