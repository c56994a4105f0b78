"""Each statistic from profiles is what scipy and Evidently say of the rows themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from airflow_mlops.drift import statistics
from tests.drift.frames import column_of, evidently

ROWS = 20_000
PAIRS = {
    "shifted": lambda random: (random.normal(size=ROWS), random.normal(0.1, 1, size=ROWS)),
    "wider": lambda random: (random.normal(size=ROWS), random.normal(0, 1.2, size=ROWS // 3)),
    "the same": lambda random: (random.normal(size=ROWS), random.normal(size=ROWS)),
    "far from 0": lambda random: (1e9 + random.normal(size=ROWS), 1e9 + random.normal(0.1, 1, size=ROWS)),
    "skewed": lambda random: (random.lognormal(0, 2, ROWS), random.lognormal(0.1, 2, ROWS)),
    "heavy tails": lambda random: (random.standard_t(3, ROWS), random.standard_t(3, ROWS) * 1.1),
    "very heavy tails": lambda random: (random.standard_cauchy(ROWS), random.standard_cauchy(ROWS) + 0.2),
    "many integers": lambda random: (random.integers(0, 10**6, ROWS), random.integers(0, 10**6 + 50_000, ROWS)),
    "few integers": lambda random: (random.poisson(3, ROWS), random.poisson(3.2, ROWS)),
    "two humps": lambda random: (
        np.where(random.random(ROWS) < 0.5, 5, -5) + random.normal(size=ROWS),
        np.where(random.random(ROWS) < 0.52, 5, -5) + random.normal(size=ROWS),
    ),
    "cents": lambda random: (random.lognormal(3, 1, ROWS).round(2), random.lognormal(3.05, 1, ROWS).round(2)),
}
NUMBERS = st.lists(st.integers(-8, 8) | st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=40)
TEXTS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_of_large_samples(name: str) -> None:
    one, other = PAIRS[name](np.random.default_rng(5))
    reference, current = column_of(one), column_of(other, pieces=1_500)
    wanted = evidently("wasserstein", one, other)
    assert statistics.wasserstein(reference, current) == pytest.approx(wanted, abs=1e-5)
    distance = stats.ks_2samp(one, other, method="asymp").statistic
    largest = max(each.bins.count.max() / each.bins.rows for each in (reference, current))
    found = statistics.ks_distance(reference, current)
    assert distance - (0 if reference.bins.exact else largest) <= found + 1e-12 <= distance + 2e-12


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_distances_of_few_numbers_are_exact(one: list[float], other: list[float]) -> None:
    one, other = ([float(each) for each in side] for side in (one, other))
    reference, current = column_of(one), column_of(other)
    wanted = evidently("wasserstein", one, other)
    assert statistics.wasserstein(reference, current) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert statistics.ks_distance(reference, current) == pytest.approx(stats.ks_2samp(one, other).statistic)
    if reference.bins.exact and len(reference.bins.index) <= 20:
        wanted = evidently("jensenshannon", one, other)
        assert statistics.jensen_shannon(reference, current) == pytest.approx(wanted, abs=1e-7)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_distances_of_categories_are_exact(one: list[str], other: list[str]) -> None:
    reference, current = column_of(one), column_of(other)
    wanted = evidently("jensenshannon", one, other, "cat")
    assert statistics.jensen_shannon(reference, current) == pytest.approx(wanted, abs=1e-7)
    assert statistics.psi(reference, current) == pytest.approx(evidently("psi", one, other, "cat"))
    counts = pd.concat([pd.Series(each).value_counts() for each in (one, other)], axis=1).fillna(0).T.to_numpy()
    distances = np.abs(counts[0] / counts[0].sum() - counts[1] / counts[1].sum())
    assert statistics.total_variation(reference, current) == pytest.approx(distances.sum() / 2)
    found = statistics.chi_square(reference, current)
    if counts.shape[1] > 1:
        wanted = stats.chi2_contingency(counts, correction=False)
        assert found == pytest.approx((wanted.statistic, wanted.dof))
    assert set(statistics.new_categories(reference, current)) == set(other) - set(one)
    assert set(statistics.vanished_categories(reference, current)) == set(one) - set(other)


@pytest.mark.parametrize("name", PAIRS)
def test_shares_of_numbers_in_cells_of_equal_width_are_near_those_of_the_rows(name: str) -> None:
    one, other = PAIRS[name](np.random.default_rng(6))
    reference, current = column_of(one), column_of(other)
    wanted = evidently("jensenshannon", one, other)
    assert statistics.jensen_shannon(reference, current) == pytest.approx(wanted, abs=0.01)
    for side in statistics.shares(reference, current, bins=10):
        assert side.sum() == pytest.approx(1) and len(side) <= 10


def test_nulls_and_empty_columns() -> None:
    reference, current = column_of([1.0, None, 2.0, 3.0]), column_of([None, np.nan, None, 1.0])
    assert statistics.null_shares(reference, current) == (0.25, 0.75)
    for empty in (column_of([None, None]), column_of([]), column_of([np.nan])):
        assert np.isnan(statistics.wasserstein(column_of([1.0]), empty))
        assert np.isnan(statistics.ks_distance(empty, column_of([1.0])))
        assert statistics.null_shares(empty, empty)[0] in (0.0, 1.0)


def test_constants_lie_apart_by_a_finite_number() -> None:
    assert statistics.wasserstein(column_of([5.0] * 9), column_of([5.0] * 4)) == 0
    assert statistics.wasserstein(column_of([5.0] * 9), column_of([6.0] * 4)) == pytest.approx(1000)
    huge = column_of([-1.7e308, 1.7e308]), column_of([1.7e308])
    assert np.isfinite(statistics.wasserstein(huge[1], huge[1]))


def test_counts_that_are_not_complete_have_a_rest() -> None:
    many = column_of([f"v{each % 3000}" for each in range(30_000)] + ["often"] * 5_000)
    assert many.error and many.rest
    assert statistics.total_variation(many, many) == 0
    assert statistics.jensen_shannon(many, column_of(["often"] * 10)) > 0.5
    assert statistics.new_categories(many, column_of(["x"])) == ()


@pytest.mark.parametrize("name", PAIRS)
def test_quantiles_stand_for_the_rows(name: str) -> None:
    one, _ = PAIRS[name](np.random.default_rng(7))
    column = column_of(one)
    at = (np.arange(2_000) + 0.5) / 2_000
    found, wanted = statistics.quantiles(column, at), np.quantile(one, at, method="inverted_cdf")
    assert (np.diff(found) >= 0).all()
    middle = (at > 0.01) & (at < 0.99)
    spread = np.subtract(*np.quantile(one, [0.9, 0.1]))
    assert found[middle] == pytest.approx(wanted[middle], abs=0.03 * spread)
    assert found[middle].mean() == pytest.approx(wanted[middle].mean(), abs=0.001 * spread)
