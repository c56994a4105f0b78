"""The null: what chance does, by the rows' own noise and by days that differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from airflow_mlops.drift import null
from airflow_mlops.drift.null import Group, calibrate, differences, distances, memory, metric

BLOCKS = 60


def group(
    random: np.random.Generator, shares: Any, rows: int = 12_000, columns: int = 3, *, spread: float = 0.0
) -> Group:
    """Unordered columns; ``spread`` makes days differ."""
    shares = np.asarray(shares, float)
    counts = np.empty((BLOCKS, columns, len(shares)))
    for block in range(BLOCKS):
        law = shares * np.exp(spread * random.normal(size=(columns, len(shares))))
        counts[block] = random.multinomial(rows // BLOCKS, law / law.sum(axis=1, keepdims=True))
    return Group(False, counts.sum(axis=0), np.zeros((columns, len(shares) - 1)), counts)


def rows_of(made: Group, rows: float) -> Any:
    return np.full(made.counts.shape[0], rows)


def test_the_noise_is_that_of_multinomial_rows_on_both_sides() -> None:
    made = group(np.random.default_rng(0), [0.6, 0.3, 0.1], columns=2)
    drawn = differences([made], [rows_of(made, 500.0)], None, 0, 20_000)[0][:, 0]
    shares = made.counts[0] / made.counts[0].sum()
    effective = 500 * 12_000 / 12_500
    assert np.allclose(drawn.sum(axis=1), 0, atol=1e-5)
    assert np.cov(drawn.T) == pytest.approx(
        (np.diag(shares) - np.outer(shares, shares)) / effective, rel=0.05, abs=1e-6
    )


def test_independent_rows_have_no_memory_and_days_that_differ_have() -> None:
    random = np.random.default_rng(1)
    alike, different = group(random, [0.25] * 4, columns=8), group(random, [0.25] * 4, columns=8, spread=0.5)
    found = [memory(each, metric(each, rows_of(each, 1000.0))) for each in (alike, different)]
    assert found[0] is not None and np.mean(found[0].scale ** 2) < 0.25
    assert found[1] is not None and np.min(found[1].scale ** 2) > 0.8


def test_days_that_differ_widen_the_null_by_as_much_as_they_do() -> None:
    random = np.random.default_rng(2)
    made = group(random, [0.5, 0.5], columns=40, spread=0.4)
    sizes = differences([made], [rows_of(made, 200.0)], 1.0, 0, 4000)[0][..., 0].std(axis=0)
    days = made.blocks[..., 0] / made.blocks.sum(axis=2)
    assert sizes.mean() == pytest.approx(days.std(axis=0).mean(), rel=0.15)


def test_fewer_than_eight_blocks_tell_nothing() -> None:
    made = group(np.random.default_rng(0), [0.5, 0.5])
    few = made._replace(blocks=made.blocks[:7])
    assert memory(few, metric(few, rows_of(few, 100.0))) is None


@given(st.floats(0, 0.9), st.integers(2, 80))
@settings(max_examples=50)
def test_the_variance_of_a_sum_of_autoregressive_terms(follow: float, length: int) -> None:
    lags = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    wanted = np.sum(np.power(follow, lags)) / length
    assert null._growth(np.array([follow]), length)[0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("rows", [300, 3000])
def test_the_largest_of_independent_columns_alarms_at_the_declared_rate(rows: int) -> None:
    random = np.random.default_rng(3)
    alarms, pairs = 0, 0
    shares = np.array([0.3, 0.2, 0.2, 0.2, 0.05, 0.05])
    for seed in range(40):
        made = group(random, shares, columns=10)
        valid = rows_of(made, float(rows))
        found = calibrate([made], [valid], rows / 12_000 * BLOCKS, seed)
        own = made.counts / made.counts.sum(axis=1, keepdims=True)
        for _ in range(10):
            z = found.z(0, distances(random.multinomial(rows, shares, 10) / rows - own, metric(made, valid)))
            alarms, pairs = alarms + int(z.max() > found.threshold(0.1)), pairs + 1
    assert stats.binomtest(alarms, pairs, 0.1).pvalue > 1e-3, (alarms, pairs)


def test_thresholds_rise_as_the_rate_falls_and_chance_is_their_inverse() -> None:
    made = group(np.random.default_rng(4), [0.2] * 5)
    found = calibrate([made], [rows_of(made, 800.0)], 4.0, 0)
    levels = [found.threshold(rate) for rate in (0.2, 0.05, 0.01, 1e-3, 1e-5)]
    assert levels == sorted(levels)
    for rate in (0.05, 0.01, 1e-3, 1e-5):
        assert found.chance(found.threshold(rate)) == pytest.approx(rate, rel=0.1)


def test_the_same_seed_draws_the_same_null() -> None:
    made = group(np.random.default_rng(5), [0.2] * 5)
    one, other, third = (calibrate([made], [rows_of(made, 800.0)], 4.0, seed) for seed in (7, 7, 8))
    assert np.array_equal(one.largest, other.largest) and not np.array_equal(one.largest, third.largest)


def test_twenty_columns_cost_well_under_a_second() -> None:
    import time

    made = group(np.random.default_rng(6), [1 / 34] * 34, columns=20)
    started = time.process_time()
    calibrate([made], [rows_of(made, 5000.0)], 25.0, 0)
    assert time.process_time() - started < 1.0
