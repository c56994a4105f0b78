"""All columns together: can a classifier tell the window's rows from the reference's?

It sees what no column shows by itself, such as two columns that no longer go together (a classifier two-sample test:
Lopez-Paz and Oquab, ICLR 2017). It learns on the earlier half of both sides and is tried on the later half, and what
chance gives is found by exchanging whole blocks of time between the sides of that half: rows of a day stay together,
and the classifier has seen none of them. Rows are bounded, whatever there is of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier

from airflow_mlops.drift.cells import block_edges
from airflow_mlops.drift.collect import microseconds
from airflow_mlops.drift.decide import ColumnDrift

NAME = "all columns together"
ROWS = 20_000
"""The most rows of a side."""
LEAST_AUC = 0.55
"""What is told apart less well than that does not matter."""
_PERMUTATIONS = 2_000
_CATEGORIES = 100


def told_apart(
    reference: pa.Table, current: pa.Table, columns: list[str], time: str | None, rate: float
) -> ColumnDrift:
    """A word on all columns together.

    Args:
        reference: rows that the champion was trained on.
        current: the window's rows.
        columns: what is compared; numbers and categories of the same kind on both sides.
        time: the column that says when a row happened. Without one every row is a block of its own.
        rate: the chance of an alarm on a window without drift.
    """
    sides = [_sampled(_in_order(table, time)) for table in (reference, current)]
    blocks = [_blocks(table, time, sides[0]) for table in sides]
    features = _features([table.select(columns) for table in sides])
    halves = [_half(each) for each in blocks]
    learnt = np.concatenate([each[:half] for each, half in zip(features, halves, strict=True)])
    tried = np.concatenate([each[half:] for each, half in zip(features, halves, strict=True)])
    late = [each[half:] for each, half in zip(blocks, halves, strict=True)]
    label = np.repeat([0, 1], halves)
    if min(halves) < 20 or min(len(each) for each in late) < 20 or min(len(np.unique(each)) for each in late) < 2:
        return not_judged("too few rows or blocks of time to compare")
    # Both sides weigh the same, however many rows they have.
    weight = np.where(label == 1, halves[0] / halves[1], 1.0)
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, min_samples_leaf=20, random_state=0)
    score = model.fit(learnt, label, weight).predict_proba(tried)[:, 1]
    auc, chance = _exchanged(score, late)
    moved = chance <= rate and auc >= LEAST_AUC
    note = f"a classifier tells rows from the reference's with an AUC of {auc:.2f} (chance of that: {chance:.1%})"
    return _word("moved" if moved else "steady", auc, chance, note)


def not_judged(why: str) -> ColumnDrift:
    """The word where nothing could be compared."""
    return _word("not_judged", None, None, why)


def _word(word: Any, auc: float | None, chance: float | None, note: str) -> ColumnDrift:
    return ColumnDrift(NAME, word, "rows", auc, None, LEAST_AUC, None, None, chance, (0.0, 0.0), f"{NAME}: {note}")


def _in_order(table: pa.Table, time: str | None) -> pa.Table:
    if time is None:
        # In any order but the file's, which may be sorted by something else.
        return table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    return table.filter(pc.is_valid(table[time])).sort_by(time)


def _sampled(table: pa.Table) -> pa.Table:
    if table.num_rows <= ROWS:
        return table
    chosen = np.sort(np.random.default_rng(0).choice(table.num_rows, ROWS, replace=False))
    return table.take(pa.array(chosen))


def _blocks(table: pa.Table, time: str | None, reference: pa.Table) -> Any:
    """The block of each row; of the same length on both sides."""
    if time is None:
        return np.arange(table.num_rows)
    first, own = (microseconds(each[time].combine_chunks()).to_numpy() for each in (reference, table))
    length = int(np.diff(block_edges(int(first[0]), int(first[-1])))[0])
    return own // length


def _half(blocks: Any) -> int:
    """How many rows are in the earlier half of the blocks."""
    different = np.unique(blocks)
    return int(np.searchsorted(blocks, different[len(different) // 2])) if len(different) else 0


def _features(sides: list[pa.Table]) -> list[Any]:
    """Numbers as they are, categories as numbers, the reference's most frequent ones apart."""
    made: list[list[Any]] = [[], []]
    for name in sides[0].column_names:
        kinds = [side[name].type for side in sides]
        if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in kinds):
            for at, side in enumerate(sides):
                values = side[name].cast("float64", safe=False).to_numpy()
                made[at].append(np.where(np.isinf(values), np.nan, values))
            continue
        counted = pc.value_counts(sides[0][name].cast("string").drop_null()).to_pylist()
        counted.sort(key=lambda each: (-each["counts"], each["values"]))
        codes = {each["values"]: code for code, each in enumerate(counted[:_CATEGORIES])}
        for at, side in enumerate(sides):
            values = side[name].cast("string").to_pylist()
            made[at].append(np.array([np.nan if each is None else codes.get(each, -1) for each in values], float))
    return [np.column_stack(each) for each in made]


def _exchanged(score: Any, blocks: list[Any]) -> tuple[float, float]:
    """The AUC of scores, and how often exchanged blocks give at least that."""
    own = np.concatenate([np.unique(each, return_inverse=True)[1] + at * 10**9 for at, each in enumerate(blocks)])
    different, at = np.unique(own, return_inverse=True)
    rows, ranks = np.bincount(at), np.bincount(at, rankdata(score))
    current = different >= 10**9

    def auc(chosen: Any) -> Any:
        n = chosen @ rows
        return (chosen @ ranks - n * (n + 1) / 2) / (n * (len(score) - n))

    found = float(auc(current.astype(float)))
    random = np.random.default_rng(0)
    drawn = np.array([random.permutation(current) for _ in range(_PERMUTATIONS)], float)
    return found, float((1 + np.sum(auc(drawn) >= found - 1e-12)) / (1 + _PERMUTATIONS))
