"""A profile as bytes: the same after reading, small, and refused when it is something else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from airflow_mlops.drift.profile import Blocks, DatasetProfile
from airflow_mlops.errors import DataError
from tests import toy
from tests.drift.frames import profile_of


def whole() -> DatasetProfile:
    table = toy.rows("2024-01").append_column("empty", pa.nulls(400)).append_column("list", pa.array([[1]] * 400))
    profile = profile_of(table, time="at")
    edges = np.arange(4) * 10**12
    counts = {"age": np.arange(12).reshape(3, 4), "region": np.ones((3, 2), np.int64)}
    return DatasetProfile(profile.rows, profile.columns, "at", Blocks(edges, np.array([1, 2, 3]), counts))


def test_what_is_written_is_read_again() -> None:
    profile = whole()
    data = profile.to_bytes()
    found = DatasetProfile.from_bytes(data)
    assert found == profile and found.to_bytes() == data
    assert found.blocks is not None and found.blocks.counts["age"].tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert found.columns["amount"].bins.mean.tolist() == profile.columns["amount"].bins.mean.tolist()
    for strange in (
        profile_of(pa.table({"x": [np.nan, None]})),
        DatasetProfile(0, {}),
        replace(profile, others=("y",)),
    ):
        assert DatasetProfile.from_bytes(strange.to_bytes()) == strange


def test_a_hundred_columns_are_a_few_hundred_kilobytes() -> None:
    random = np.random.default_rng(0)
    numbers = {f"n{each}": random.normal(size=30_000) for each in range(20)}
    texts = {
        f"c{each}": np.array([f"level-{code}" for code in range(100)])[random.integers(0, 100, 30_000)]
        for each in range(5)
    }
    size = len(profile_of(pa.table({**numbers, **texts})).to_bytes())
    assert 4 * size < 700_000


def test_what_is_no_profile_is_refused() -> None:
    data = whole().to_bytes()
    with pytest.raises(DataError, match="ref.bin is of version 7, and this release reads version 2; try: make the"):
        DatasetProfile.from_bytes(data.replace(b"profile 2\n", b"profile 7\n"), "ref.bin")
    with pytest.raises(DataError, match="ref.bin is no profile"):
        DatasetProfile.from_bytes(b"PAR1 and so on", "ref.bin")
    for damaged in (data[:-40], data[:200], data[:26] + b"x" * 500, data[:26]):
        with pytest.raises(DataError, match="is damaged"):
            DatasetProfile.from_bytes(damaged)
