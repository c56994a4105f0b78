"""What a drift rule would do before anyone turns it on: how often chance alarms it, and how small a move it finds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from airflow_mlops.drift.cells import cells_of
from airflow_mlops.drift.decide import Comparison, null_in_words, seed_of
from airflow_mlops.drift.null import Floats, Group, Null, differences, distances, metric, standardised
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.spec.pipeline import DriftRule

POWER = 0.95
"""How often the smallest move is found."""
_SHIFTS = np.geomspace(0.02, 4.0, 48)
_SHARES = np.geomspace(0.005, 0.9, 48)
_TRIED = 300


class Reach(NamedTuple):
    """The smallest move of a column that is found in 95% of windows."""

    column: str
    kind: str
    smallest: float | None
    """Of numbers in standard deviations; of categories the share of rows that goes from the most frequent ones (which
    hold half of the rows) to the others. None where none of those tried is found."""
    limited_by: str
    """``chance`` or ``floor``: what keeps smaller ones from counting."""


class Calibration(NamedTuple):
    """A rule on windows of one size."""

    rows: int
    span: float | None
    """How many of the reference's time blocks they last."""
    null: str
    threshold: float
    false_alarms: float
    """The share of windows without drift that alarm, floors included; at most the declared rate."""
    columns: tuple[Reach, ...]


def calibration(reference: DatasetProfile, rule: DriftRule, rows: int, days: float | None = None) -> Calibration:
    """What a rule does with windows of so many rows.

    Args:
        reference: what windows would be held against.
        rule: the declared rule.
        rows: a window's rows.
        days: how long it lasts. Default: as long as so many rows of the reference.
    """
    sides = Comparison(reference, reference, rule)
    groups = sides.groups
    valid = [counts.sum(axis=1) * rows / reference.rows for counts in sides.windows]
    span = _span(reference, rows, days)
    if not groups:
        return Calibration(rows, span, null_in_words(span, reference), 0.0, 0.0, ())
    drawn = differences(groups, valid, span, seed_of(groups))
    hows = [metric(group, each) for group, each in zip(groups, valid, strict=True)]
    found = [distances(each, how) for each, how in zip(drawn, hows, strict=True)]
    null = standardised(found, valid)
    threshold = null.threshold(rule.false_alarm_rate)
    alarms = np.zeros(len(drawn[0]), bool)
    reached = []
    for at, (names, group) in enumerate(zip(sides.names, groups, strict=True)):
        nulls = at == sides.nulls_at
        effect = _effect(group, found[at], drawn[at], nulls)
        floor = rule.min_effect if group.ordered else rule.min_category_effect
        alarms |= np.any((null.z(at, _by_replicate(found[at])).max(axis=1) > threshold) & (effect >= floor), axis=1)
        if not nulls:
            some = drawn[at][:_TRIED]
            reached += _reach(reference, names, group, some, (null, at, hows[at], threshold), floor)
    return Calibration(
        rows, span, null_in_words(span, reference), threshold, float(alarms.mean()),
        tuple(sorted(reached, key=lambda each: list(reference.columns).index(each.column))),
    )  # fmt: skip


def _by_replicate(found: Floats) -> Floats:
    """``(statistics, replicates, columns)`` as ``(replicates, statistics, columns)``."""
    return np.moveaxis(found, 0, 1)


def _span(reference: DatasetProfile, rows: int, days: float | None) -> float | None:
    if reference.blocks is None or int(np.count_nonzero(reference.blocks.rows)) < 8:
        return None
    if days is None:
        return rows / reference.rows * int(np.count_nonzero(reference.blocks.rows))
    return days * 86.4e9 / float(np.median(np.diff(reference.blocks.edges)))


def _effect(group: Group, found: Floats, drawn: Floats, nulls: bool) -> Floats:
    """The effects that floors are for, ``(replicates, columns)``."""
    if group.ordered:
        return np.asarray(found[1])
    if nulls:
        return np.abs(drawn[..., 1])
    return _jensen_shannon(group.counts / group.counts.sum(axis=1, keepdims=True), drawn)


def _jensen_shannon(shares: Floats, difference: Floats) -> Floats:
    other = np.maximum(shares + difference, 0.0)
    middle = (shares + other) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [np.where(side > 0, side * np.log(side / middle), 0.0).sum(axis=-1) for side in (shares, other)]
    return np.asarray(np.sqrt(np.maximum(sum(each), 0.0) / 2))


def _reach(
    reference: DatasetProfile,
    names: list[str],
    group: Group,
    drawn: Floats,
    judge: tuple[Null, int, Any, float],
    floor: float,
) -> list[Reach]:
    """The smallest moves of a group's columns, all tried at once."""
    null, at, how, threshold = judge
    shares = group.counts / group.counts.sum(axis=1, keepdims=True)
    steps = _SHIFTS if group.ordered else _SHARES
    beyond, large = [], []
    for step in steps:
        moved = np.stack([_moved(reference, name, shares[column], step) for column, name in enumerate(names)]) - shares
        z = null.z(at, _by_replicate(distances(drawn + moved, how))).max(axis=1)
        beyond.append((z > threshold).mean(axis=0) >= POWER)
        if group.ordered:
            large.append(np.full(len(names), step >= floor))
        else:
            large.append((_jensen_shannon(shares, drawn + moved) >= floor).mean(axis=0) >= POWER)
    kind = "number" if group.ordered else "category"
    reached = []
    for column, name in enumerate(names):
        first = [_first(np.array(each)[:, column]) for each in (beyond, large)]
        least = None if None in first else float(steps[max(first)])
        if least is not None and group.ordered and first[0] <= first[1]:
            least = floor
        reached.append(Reach(name, kind, least, "floor" if None not in first and first[0] <= first[1] else "chance"))
    return reached


def _first(found: Any) -> Any:
    """From which step on it always holds."""
    missed = np.flatnonzero(~found)
    start = int(missed[-1]) + 1 if len(missed) else 0
    return start if start < len(found) else None


def _moved(reference: DatasetProfile, name: str, shares: Floats, step: float) -> Floats:
    """The shares of cells when the column has moved."""
    column = reference.columns[name]
    if column.kind == "number":
        cells = cells_of(column)
        codes = np.searchsorted(cells.edges, column.bins.mean + step * column.std, side="right")
        found = np.bincount(codes, column.bins.count, len(shares))[: len(shares)]
        return np.asarray(found / found.sum())
    order = np.argsort(-shares, kind="stable")
    frequent = order[: int(np.searchsorted(np.cumsum(shares[order]), 0.5)) + 1]
    from_, to = np.zeros(len(shares)), shares.copy()
    from_[frequent], to[frequent] = shares[frequent], 0.0
    leaving = min(step, float(from_.sum()))
    arriving = to / to.sum() if to.sum() else np.full(len(to), 1 / len(to))
    return np.asarray(shares - leaving * from_ / from_.sum() + leaving * arriving)
