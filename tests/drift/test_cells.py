"""Cells: few, the same for a profile and for its rows, with a place for what was never seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.drift.cells import CATEGORY_CELLS, MAX_BLOCKS, NUMBER_CELLS, block_edges, cells_of
from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.profile import ColumnProfile

DAY = 86_400_000_000


def column(values: pa.Array) -> ColumnProfile:
    table = pa.table({"x": values})
    return profile_batches(table.to_batches(), table.schema).columns["x"]


NUMBERS = st.lists(
    st.none() | st.sampled_from([0.0, -1.5, 2.0, float("nan"), float("inf")]) | st.floats(-1e6, 1e6), min_size=1
)
WORDS = st.lists(st.none() | st.text(max_size=1), min_size=1)


@settings(max_examples=60)
@given(NUMBERS, NUMBERS)
def test_a_profile_of_numbers_counts_as_its_rows_do(reference: list[Any], current: list[Any]) -> None:
    sides = pa.array([*reference, 1.0], pa.float64()), pa.array(current, pa.float64())
    cells = cells_of(column(sides[0]))
    for side in sides:
        assert list(cells.counts(column(side))) == list(np.bincount(cells.codes(side), minlength=cells.size))


@settings(max_examples=60)
@given(WORDS, WORDS)
def test_a_profile_of_categories_counts_as_its_rows_do(reference: list[Any], current: list[Any]) -> None:
    sides = pa.array([*reference, "a"], pa.string()), pa.array(current, pa.string())
    cells = cells_of(column(sides[0]))
    for side in sides:
        assert list(cells.counts(column(side))) == list(np.bincount(cells.codes(side), minlength=cells.size))


def test_few_cells_of_about_equal_weight() -> None:
    values = np.random.default_rng(0).lognormal(size=20_000)
    made = cells_of(column(pa.array(values)))
    counts = made.counts(column(pa.array(values)))
    assert NUMBER_CELLS < made.size <= 2 * NUMBER_CELLS + 8
    assert counts.max() < 2 * len(values) / NUMBER_CELLS and counts[0] == counts[-2] == counts[-1] == 0
    assert (np.diff(made.edges) > 0).all()


def test_a_frequent_value_has_a_cell_of_its_own() -> None:
    values = np.where(np.arange(20_000) % 2, 0.0, np.random.default_rng(0).normal(size=20_000))
    counts = cells_of(column(pa.array(values))).counts(column(pa.array(values)))
    assert counts.max() == pytest.approx(10_000, rel=0.02)


def test_values_beyond_and_new_categories_have_a_place() -> None:
    number = cells_of(column(pa.array([1.0, 2.0, 3.0])))
    assert list(number.counts(column(pa.array([0.0, 2.0, 9.0, float("inf"), None])))) == [1, 0, 1, 0, 2, 1]
    word = cells_of(column(pa.array(["a", "a", "b"])))
    assert list(word.counts(column(pa.array(["a", "b", "c", "d", None])))) == [1, 1, 2, 1]


def test_many_categories_share_few_cells() -> None:
    made = cells_of(column(pa.array([f"v{index % 700}" for index in range(7000)])))
    assert made.size == CATEGORY_CELLS + 2 and len(made.groups) == 700


def test_which_categories_share_a_cell_does_not_follow_their_counts() -> None:
    names = np.array([f"v{number}" for number in range(200)])
    often = np.repeat(["often"], 2_000)
    drawn = [np.random.default_rng(seed).choice(names, 20_000) for seed in (1, 2)]
    one, other = (cells_of(column(pa.array(np.concatenate([each, often])))).groups for each in drawn)
    assert one == other and len(one) == 201
    assert [value for value, cell in one.items() if cell == one["often"]] == ["often"]
    sizes = np.bincount(list(one.values()))
    assert len(sizes) == CATEGORY_CELLS and sizes[1:].max() - sizes[1:].min() <= 1


@settings(max_examples=100)
@given(st.integers(0, 2 * 10**15), st.integers(0, 3 * 10**14))
def test_blocks_cover_the_reference_and_are_few(start: int, length: int) -> None:
    edges = block_edges(start, start + length)
    assert edges[0] <= start and edges[-1] > start + length and len(edges) - 1 <= MAX_BLOCKS
    assert (np.diff(edges) > 0).all()


def test_blocks_are_whole_days_where_there_are_enough_of_them() -> None:
    assert set(np.diff(block_edges(5 * DAY + 7, 64 * DAY))) == {DAY}
    assert set(np.diff(block_edges(0, 150 * DAY))) == {2 * DAY}
    assert set(np.diff(block_edges(0, 10 * DAY))) == {3 * DAY // 24}
