"""A reference: a profile with its rows counted by blocks of time, from which the decision learns what chance does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from airflow_mlops.drift.cells import block_edges, cells_of
from airflow_mlops.drift.collect import Batch, count_blocks
from airflow_mlops.drift.profile import DatasetProfile


def with_blocks(profile: DatasetProfile, rows: Callable[[list[str]], Iterable[Batch]]) -> DatasetProfile:
    """Add the blocks of time to a profile; it stays as it is without times.

    Args:
        profile: of the rows.
        rows: reads the same rows once more, given the columns that are wanted.
    """
    time = profile.columns.get(profile.time or "")
    if profile.time is None or time is None or time.kind != "time" or time.min is None or time.max is None:
        return profile
    cells = {
        name: cells_of(column) for name, column in profile.columns.items() if column.kind in ("number", "category")
    }
    edges = block_edges(int(time.min), int(time.max))
    return replace(profile, blocks=count_blocks(rows([profile.time, *cells]), profile.time, edges, cells))
