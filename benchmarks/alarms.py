"""What the drift decision does where nothing has drifted, and how small a move it finds.

Rows are drawn as counts of cells, which is exact: the populations have at most 512 values, which a profile holds one by
one. A reference is a fresh sample of 20,000 rows in 64 blocks of time; its cells, its null and its threshold are the
rule's own (floors apart: what counts here is the threshold alone, so real alarms are fewer). 20 and 5 columns are five
parts of the 100, each a reference of its own; every reference meets ten windows.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from airflow_mlops.drift.bins import of_distinct
from airflow_mlops.drift.cells import Cells, cells_of
from airflow_mlops.drift.null import Group, Null, distances, draws, metric, standardised
from airflow_mlops.drift.profile import ColumnProfile

ROWS, BLOCKS, VALUES = 20_000, 64, 512
WINDOWS, COLUMNS = (300, 1_000, 5_000, 50_000), (5, 20, 100)
FAMILIES = ("normal", "heavy-tailed", "skewed", "discrete", "100 categories")
RATE, WINDOWS_EACH, PARTS = 0.01, 10, 5
REFERENCES, QUICK_REFERENCES = 400, 3
SHIFT = 0.25
FLIGHTS = Path(__file__).parents[1] / "dags" / "flights" / "data"


class Counted(NamedTuple):
    """Alarms among pairs of a reference and a window."""

    alarms: int = 0
    pairs: int = 0
    confirmed: int = 0
    twice: int = 0
    found: int = 0
    moved: int = 0

    def plus(self, other: Counted) -> Counted:
        return Counted(*(one + two for one, two in zip(self, other, strict=True)))


def population(family: str, shift: float = 0.0) -> tuple[Any, Any]:
    """Values and their probabilities; ``shift`` in standard deviations (of what lies behind them, for categories)."""
    from scipy import stats

    if family == "discrete":
        values = np.arange(30.0)
        return values, _normed(stats.poisson(2.0 + shift * np.sqrt(2.0)).pmf(values))
    if family == "100 categories":
        edges = stats.norm.ppf(np.linspace(0, 1, 101))
        return np.arange(100.0), np.diff(stats.norm.cdf(edges - shift))
    law: Any = {"normal": stats.norm(), "heavy-tailed": stats.t(2.5), "skewed": stats.lognorm(1.0)}[family]
    # Fine in the tails, where a rank in the middle of its bin stands for the bin.
    ranks = np.unique(np.concatenate([np.linspace(0, 1, VALUES - 40), 10.0 ** -np.linspace(3, 5, 20)]))
    ranks = np.unique(np.concatenate([ranks, 1 - 10.0 ** -np.linspace(3, 5, 20)]))
    values = law.ppf((ranks[:-1] + ranks[1:]) / 2)
    # Moved rows take the places of the same values, so that moving changes shares and not the grid.
    edges = law.ppf(ranks) - shift * law.std()
    return values, np.diff(law.cdf(edges))


def _normed(shares: Any) -> Any:
    return shares / shares.sum()


def _reference(random: np.random.Generator, family: str, columns: int) -> tuple[Group, Any, list[Cells]]:
    """A reference as the rule sees it, and the probabilities of its cells."""
    values, shares = population(family)
    drawn = random.multinomial(ROWS, shares, size=columns)
    cells, expected, chances = [], [], []
    for counts in drawn:
        there = counts > 0
        if family == "100 categories":
            column = ColumnProfile("x", "category", "string", ROWS, counts=_named(values[there], counts[there]))
        else:
            mean = float(np.average(values, weights=counts))
            squares = float(np.sum(counts * (values - mean) ** 2))
            bins = of_distinct(values[there], counts[there])
            column = ColumnProfile("x", "number", "double", ROWS, mean=mean, squares=squares, bins=bins)
        made = cells_of(column)
        cells.append(made)
        expected.append(made.expected(column)[:-1])
        chances.append(_chances(made, values, shares))
    width = max(len(each) for each in expected)
    counts = np.stack([np.pad(each, (0, width - len(each))) for each in expected])
    gaps = np.stack([np.pad(each.gaps, (0, width - 1 - len(each.gaps))) for each in cells])
    # Rows of the same law fall into blocks evenly.
    split = random.multinomial(np.floor(counts).astype(np.int64), np.full(BLOCKS, 1 / BLOCKS))
    group = Group(cells[0].ordered, counts, gaps, np.moveaxis(split, 2, 0).astype(float))
    return group, np.stack([np.pad(each, (0, width - len(each))) for each in chances]), cells


def _named(values: Any, counts: Any) -> dict[str, int]:
    return {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}


def _chances(cells: Cells, values: Any, shares: Any) -> Any:
    if cells.ordered:
        codes = cells.codes(values)
    else:
        codes = np.array([cells.groups.get(str(int(value)), cells.size - 2) for value in values])
    return np.bincount(codes, shares, cells.size)[:-1]


def _parts(columns: int, most: int) -> Iterator[slice]:
    for start in range(0, min(most, PARTS * columns), columns):
        yield slice(start, start + columns)


def _pairs(task: tuple[str, int, int, int]) -> dict[tuple[int, int], Counted]:
    """One reference of a family against windows of every size, and what parts of its columns say."""
    family, seed, most, each = task
    random = np.random.default_rng([seed, FAMILIES.index(family)])
    group, chances, cells = _reference(random, family, most)
    moved_values, moved_shares = population(family, SHIFT)
    moved = np.stack([np.pad(row, (0, chances.shape[1] - len(row))) for row in
                      (_chances(made, moved_values, moved_shares) for made in cells)])  # fmt: skip
    counted: dict[tuple[int, int], Counted] = {}
    for rows in WINDOWS:
        valid = np.full(most, float(rows))
        drawn = draws([group], [valid], rows / ROWS * BLOCKS, seed)[0]
        shares = group.counts / group.counts.sum(axis=1, keepdims=True)
        found = [
            distances(random.multinomial(rows, law) / rows - shares, metric(group, valid))
            for law in (*[chances] * each, moved)
        ]
        for columns in COLUMNS:
            if columns > most:
                continue
            total = Counted()
            for part in _parts(columns, most):
                null = standardised([drawn[:, :, part]], [valid[part]])
                total = total.plus(_judged(null, [distance[:, part] for distance in found]))
            counted[rows, columns] = total
    return counted


def _judged(null: Null, found: list[Any]) -> Counted:
    """Alarms of one reference; the last of the distances is of a window whose first column moved."""
    threshold = null.threshold(RATE)
    beyond = [null.z(0, distance).max(axis=0) > threshold for distance in found]
    quiet = beyond[:-1]
    twice = [(one & two).any() for one, two in zip(quiet[::2], quiet[1::2], strict=False)]
    others = quiet[0].copy()
    others[0] = beyond[-1][0]
    return Counted(
        sum(bool(each.any()) for each in quiet), len(quiet), sum(map(bool, twice)), len(twice), int(beyond[-1][0]), 1
    )


def upper(alarms: int, pairs: int) -> float:
    """The upper end of the one-sided 95% interval of a rate (Clopper and Pearson, 1934)."""
    from scipy import stats

    return float(stats.beta.ppf(0.95, alarms + 1, max(pairs - alarms, 1e-9)))


def measure(*, quick: bool = False, evidently: bool = True, say: Callable[[str], None] = print) -> dict[str, float]:
    """Print the tables; return the largest bounds and the least power for a test to look at."""
    started = time.monotonic()
    references, most = (QUICK_REFERENCES, 20) if quick else (REFERENCES, 100)
    families = FAMILIES[::4] if quick else FAMILIES
    tasks = [(family, seed, most, WINDOWS_EACH) for family in families for seed in range(references)]
    results: dict[tuple[str, int, int], Counted] = {}
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(1 if quick else os.cpu_count()) as pool:
        for task, counted in zip(tasks, pool.imap(_pairs, tasks, chunksize=1 if quick else 10), strict=True):
            for key, each in counted.items():
                at = (task[0], *key)
                results[at] = results.get(at, Counted()).plus(each)
    say(f"No drift: alarms at a declared rate of {RATE:.0%} in % of pairs (upper 95% bound; pairs), thresholds alone")
    say(f"{'':16}{'columns':>8}" + "".join(f"{rows:>26,}" for rows in WINDOWS))
    for family in families:
        for columns in [each for each in COLUMNS if each <= most]:
            row = [results[family, rows, columns] for rows in WINDOWS]
            cells = [
                f"{each.alarms / each.pairs:.2%} ({upper(each.alarms, each.pairs):.2%}; {each.pairs})" for each in row
            ]
            say(f"{family:16}{columns:>8}" + "".join(f"{cell:>26}" for cell in cells))
    pooled = Counted()
    for each in results.values():
        pooled = pooled.plus(each)
    say(
        f"the same column in two windows in a row: {pooled.confirmed} of {pooled.twice} "
        f"({pooled.confirmed / pooled.twice:.3%}, upper bound {upper(pooled.confirmed, pooled.twice):.3%})"
    )
    say(f"\nPower: 1 column moved by {SHIFT} sigma is found, one window, in % of pairs")
    for family in families:
        power = [results[family, rows, 20] for rows in WINDOWS]
        say(f"{family:16}{20:>8}" + "".join(f"{each.found / each.moved:>26.1%}" for each in power))
    say(f"\n{time.monotonic() - started:.0f} s\n")
    if evidently:
        say(_evidently(quick))
    say(_flights(quick))
    return {
        "bound": max(upper(each.alarms, each.pairs) for each in results.values()),
        "alarms": pooled.alarms / pooled.pairs,
        "confirmed": pooled.confirmed / pooled.twice,
        "power": min(
            each.found / each.moved for (_, rows, columns), each in results.items() if rows > 300 and columns == 20
        ),
    }


def _evidently(quick: bool) -> str:
    """Evidently's default preset on windows without drift, 20 normal columns, a reference of 5,000 rows."""
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    random = np.random.default_rng(0)
    lines = [
        "Evidently's preset on windows without drift, 20 normal columns: any column flagged; half of them (its rule)"
    ]
    for rows in WINDOWS[:2] if quick else WINDOWS[:3]:
        pairs, each, share = 2 if quick else 20, 0, 0
        for _ in range(pairs):
            reference, current = (
                pd.DataFrame(random.normal(size=(count, 20)), columns=[f"c{at}" for at in range(20)])
                for count in (rows, rows)
            )
            value: Any = Report([DataDriftPreset()]).run(current, reference).dict()["metrics"][0]["value"]
            each += value["count"] > 0
            share += value["share"] >= 0.5
        lines.append(f"  {rows:>6,} rows on both sides: {each / pairs:.0%}; {share / pairs:.0%} of {pairs} pairs")
    return "\n".join(lines) + "\n"


def _flights(quick: bool) -> str:
    """Real windows: ten odd days against the even days of the same two months, and weeks after two months."""
    from datetime import timedelta

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from airflow_mlops.drift.collect import profile_batches
    from airflow_mlops.drift.decide import decide
    from airflow_mlops.drift.reference import with_blocks
    from airflow_mlops.spec.pipeline import DataDrift

    time_column, rule = "scheduled_at", DataDrift(min_effect=0.0, min_category_effect=0.0)
    months = [
        pq.read_table(FLIGHTS / f"2013-{month:02}.parquet").drop_columns(["flight", "late"]) for month in range(1, 13)
    ]

    def profiled(table: Any, blocks: bool) -> Any:
        made = profile_batches(table.to_batches(), table.schema, (), time_column)
        return with_blocks(made, lambda names: table.select(names).to_batches()) if blocks else made

    lines = [
        "Flights: alarms without floors by time blocks, the same by independent rows, and by time blocks with floors",
        f"{'two months':<18}{'odd days against even days':>30}{'the next five weeks':>30}",
    ]
    for first in range(0, 10, 5 if quick else 1):
        both = pa.concat_tables(months[first : first + 2])
        day = pc.days_between(pa.scalar(both[time_column][0].as_py().replace(hour=0, minute=0)), both[time_column])
        even = profiled(both.filter(pc.equal(pc.bit_wise_and(day, 1), 0)), True)
        windows = [
            both.filter(pc.and_(pc.equal(pc.bit_wise_and(day, 1), 1), pc.equal(pc.divide(day, 20), part)))
            for part in range(3)
        ]
        whole = profiled(both, True)
        after = pa.concat_tables(months[first + 2 : first + 4])
        start = after[time_column][0].as_py().replace(hour=0, minute=0)
        weeks = [
            after.filter(pc.and_(pc.greater_equal(after[time_column], start + timedelta(days=7 * week)),
                                 pc.less(after[time_column], start + timedelta(days=7 * week + 7))))
            for week in range(5 if len(months) > first + 3 else 4)
        ]  # fmt: skip
        told = []
        for reference, tables in ((even, windows), (whole, weeks)):
            sides = [profiled(table, False) for table in tables if table.num_rows > 200]
            bare = reference.__class__(reference.rows, reference.columns, reference.time)
            counts = [
                sum(decide(ref, side, judged).alarm for side in sides)
                for ref, judged in ((reference, rule), (bare, rule), (reference, DataDrift()))
            ]
            told.append(f"{counts[0]}, {counts[1]}, {counts[2]} of {len(sides)}")
        lines.append(f"2013-{first + 1:02} and -{first + 2:02}  {told[0]:>30}{told[1]:>30}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    measure(quick="--quick" in sys.argv)
