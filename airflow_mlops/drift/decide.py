"""The one decision whether a window has drifted from its reference.

A column counts as moved when chance does not explain it *and* it moved far enough to matter:

- chance: how far its cells' shares lie apart, held against what windows of this size and length would show if nothing
  had moved, at a threshold that all columns together pass with the declared ``false_alarm_rate`` (`null`);
- size: the normed Wasserstein distance (in standard deviations of the reference) for numbers, the Jensen-Shannon
  distance for categories, and the difference in the share of nulls, against the declared floors.

At a hundred thousand rows any difference is beyond chance, and at a hundred any effect looks large: neither half
decides alone. An alarm becomes drift when enough windows that share no time find the same column moved.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np

from airflow_mlops.drift import columns as facts_of
from airflow_mlops.drift import explain
from airflow_mlops.drift.cells import Cells, cells_of
from airflow_mlops.drift.null import Floats, Group, Null, calibrate, distances, metric
from airflow_mlops.drift.profile import ColumnProfile, DatasetProfile
from airflow_mlops.drift.statistics import jensen_shannon, null_shares, wasserstein
from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.pipeline import DriftRule, WindowDrift

Word = Literal["moved", "steady", "broken", "not_judged"]
Status = Literal["ok", "warn", "drift", "insufficient_data"]

_LONG = timedelta(days=7)


class ColumnDrift(NamedTuple):
    """What is said of one column."""

    column: str
    """Its name."""
    word: Word
    """Whether it moved; ``broken`` where it is gone or of another type, which no retraining mends."""
    kind: str
    """``number``, ``category``, or what else it holds."""
    effect: float | None
    """How far it moved, by `method`; of nulls, the difference of their shares."""
    method: Literal["wasserstein", "jensenshannon", "nulls"] | None
    """What the effect is measured by."""
    floor: float
    """The effect from which on it matters."""
    z: float | None
    """Its distance on the scale of `Decision.threshold`."""
    times: float | None
    """How many times its distance is what chance reaches in one window of a hundred."""
    chance: float | None
    """How often windows without drift would have *any* column this far out."""
    null_share: tuple[float, float]
    """The share of nulls in the reference and in the window."""
    note: str
    """The same in words."""


class Past(NamedTuple):
    """What an earlier window's verdict said."""

    start: datetime
    """Where the window starts."""
    end: datetime
    """Where it ends, exclusive."""
    moved: tuple[str, ...]
    """The columns that had moved."""


class Decision(NamedTuple):
    """Whether a window has drifted, and a word for every column."""

    status: Status
    """``warn`` is an alarm that too few windows confirm as yet."""
    reasons: tuple[str, ...]
    """Why, most important first."""
    columns: tuple[ColumnDrift, ...]
    """A word for every column."""
    alarm: bool
    """Whether this window by itself alarms."""
    threshold: float | None
    """The z above which a column is beyond chance."""
    null: str
    """What chance was taken to be."""


def decide(
    reference: DatasetProfile,
    current: DatasetProfile,
    rule: DriftRule,
    history: Sequence[Past] = (),
    window: tuple[datetime, datetime] | None = None,
    together: ColumnDrift | None = None,
) -> Decision:
    """Compare a window with its reference.

    The same profiles and history always give the same decision.

    Args:
        reference: the champion's reference.
        current: the window.
        rule: the declared thresholds.
        history: earlier verdicts against the same reference, in any order.
        window: where the window starts and ends. Default: nothing confirms it.
        together: a word on all columns together, which counts like that on a column.

    Raises:
        SchemaError: when a declared column is not in the reference.
    """
    unknown = [name for name in rule.columns if name not in reference.columns]
    if unknown:
        raise SchemaError(
            f"the reference has no column {', '.join(map(repr, unknown))}", allowed=", ".join(reference.columns)
        )
    if min(reference.rows, current.rows) < rule.min_rows:
        reason = (
            f"{current.rows} rows against {reference.rows} of the reference; at least {rule.min_rows} each are needed"
        )
        return Decision("insufficient_data", (reason,), (), False, None, "")
    judged = Comparison(reference, current, rule)
    words = tuple(judged.word(fact) for fact in judged.facts) + ((together,) if together else ())
    moved = sorted((word for word in words if word.word == "moved"), key=lambda word: -(word.times or 0.0))
    broken = [word for word in words if word.word == "broken"]
    rest = explain.unchanged(
        sum(word.word == "steady" for word in words),
        sum(word.word == "not_judged" for word in words),
        [fact.name for fact in judged.facts if fact.status == "new"],
    )
    alarm = bool(moved or broken)
    told = judged.threshold, judged.chance
    if not alarm:
        return Decision("ok", (f"no column moved: {rest}",), words, alarm, *told)
    reasons = [*(word.note for word in (*broken, *moved)), rest]
    unconfirmed = None if broken else _unconfirmed([word.column for word in moved], rule, history, window)
    if unconfirmed:
        return Decision("warn", (*reasons, unconfirmed), words, alarm, *told)
    return Decision("drift", tuple(reasons), words, alarm, *told)


def _unconfirmed(
    moved: list[str], rule: DriftRule, history: Sequence[Past], window: tuple[datetime, datetime] | None
) -> str | None:
    """Why an alarm is not drift yet; None when it is."""
    if not isinstance(rule, WindowDrift) or window is None:
        return None
    wanted = rule.consecutive or (1 if window[1] - window[0] >= _LONG else 2)
    within = max(rule.within or wanted, wanted)
    # A window that could not be judged stands for nothing; but what was said long ago confirms nothing either.
    oldest = window[0] - within * (window[1] - window[0])
    counted: list[Past] = []
    free = window[0]
    for past in sorted(history, key=lambda each: each.end, reverse=True):
        if oldest <= past.end <= free and len(counted) < within - 1:
            counted.append(past)
            free = past.start
    found = max(1 + sum(column in past.moved for past in counted) for column in moved)
    if found >= wanted:
        return None
    among = f" of {within}" if within > wanted else " in a row"
    return f"{found} of the {wanted} windows{among} that make it drift"


class Comparison:
    """The numbers of a comparison: one group each of numbers, categories and shares of nulls."""

    def __init__(self, reference: DatasetProfile, current: DatasetProfile, rule: DriftRule) -> None:
        self.reference, self.current, self.rule = reference, current, rule
        self.facts = facts_of.facts(reference, current, rule.columns)
        compared = {
            kind: [fact.name for fact in self.facts if fact.status == "comparable" and fact.kind == kind]
            for kind in ("number", "category")
        }
        counted = [fact.name for fact in self.facts if fact.status in ("comparable", "empty", "emptied")]
        self.names = [*(names for names in compared.values() if names), *([counted] if counted else [])]
        self.nulls_at = len(self.names) - 1
        self.groups, self.windows = [], []
        for at, names in enumerate(self.names):
            group, counts = _side_by_side(reference, current, names, of_nulls=at == self.nulls_at)
            self.groups.append(group)
            self.windows.append(counts)
        rows = [counts.sum(axis=1) for counts in self.windows]
        span = _span(reference, current)
        self.chance = null_in_words(span, reference)
        self.null: Null | None = None
        self.threshold: float | None = None
        if self.groups:
            self.null = calibrate(self.groups, rows, span, seed_of(self.groups))
            self.threshold = self.null.threshold(rule.false_alarm_rate)
        self.found = [
            distances(counts / valid[:, None] - _shares(group.counts), metric(group, valid))
            for group, counts, valid in zip(self.groups, self.windows, rows, strict=True)
        ]

    def word(self, fact: facts_of.ColumnFact) -> ColumnDrift:
        """The word on one column."""
        name, floor = fact.name, self.rule.min_category_effect
        if fact.broken or name not in self.reference.columns or name not in self.current.columns:
            word: Word = "broken" if fact.broken else "not_judged"
            note = f"{name} {fact.note}"
            return ColumnDrift(name, word, fact.kind, None, None, floor, None, None, None, (0.0, 0.0), note)
        pair = self.reference.columns[name], self.current.columns[name]
        shares = null_shares(*pair)
        if fact.status in ("comparable", "empty", "emptied"):
            gone, (z, times, chance) = abs(shares[1] - shares[0]), self._distance(self.nulls_at, name)
            if gone >= floor and self._beyond(z):
                note = explain.nulls(name, shares, times)
                return ColumnDrift(name, "moved", fact.kind, gone, "nulls", floor, z, times, chance, shares, note)
        if fact.status != "comparable":
            note = f"{name} {fact.note}"
            return ColumnDrift(name, "not_judged", fact.kind, None, None, floor, None, None, None, shares, note)
        return self._values(fact, pair, shares)

    def _values(
        self, fact: facts_of.ColumnFact, pair: tuple[ColumnProfile, ColumnProfile], shares: tuple[float, float]
    ) -> ColumnDrift:
        number = fact.kind == "number"
        effect = (wasserstein if number else jensen_shannon)(*pair)
        floor = self.rule.min_effect if number else self.rule.min_category_effect
        z, times, chance = self._distance(
            next(at for at, names in enumerate(self.names) if fact.name in names), fact.name
        )
        moved = effect >= floor and self._beyond(z)
        if moved:
            note = (explain.number if number else explain.category)(*pair, effect, times)
        else:
            note = explain.steady(fact.name, effect, floor, self._beyond(z))
        method: Literal["wasserstein", "jensenshannon"] = "wasserstein" if number else "jensenshannon"
        word: Word = "moved" if moved else "steady"
        return ColumnDrift(fact.name, word, fact.kind, effect, method, floor, z, times, chance, shares, note)

    def _beyond(self, z: float) -> bool:
        return self.threshold is not None and z > self.threshold

    def _distance(self, at: int, name: str) -> tuple[float, float, float]:
        """A column's z, how many times chance it is, and how often chance gives that; by its farthest statistic."""
        if self.null is None:
            return 0.0, 0.0, 1.0
        column = self.names[at].index(name)
        found = self.found[at][:, column]
        every = self.null.z(at, self.found[at])[:, column]
        which = int(np.argmax(every))
        usual = max(float(self.null.usual[at][which, column]), float(self.null.spread[at][which, column]))
        return float(every[which]), float(found[which]) / usual, self.null.chance(float(every[which]))


def _side_by_side(
    reference: DatasetProfile, current: DatasetProfile, names: list[str], *, of_nulls: bool
) -> tuple[Group, Floats]:
    """Columns as one group, padded to the same number of cells, and the window's counts."""
    blocks = reference.blocks
    cells = [cells_of(reference.columns[name]) for name in names]
    expected = [each.expected(reference.columns[name]) for each, name in zip(cells, names, strict=True)]
    found = [each.counts(current.columns[name]).astype(float) for each, name in zip(cells, names, strict=True)]
    kept = blocks is not None and all(name in blocks.counts for name in names)
    by_block = [blocks.counts[name].astype(float) for name in names] if blocks is not None and kept else []
    if of_nulls:
        expected, found, by_block = ([_null_or_not(each) for each in side] for side in (expected, found, by_block))
    else:
        expected, found, by_block = ([each[..., :-1] for each in side] for side in (expected, found, by_block))
    width = max(len(each) for each in expected)
    group = Group(
        ordered=not of_nulls and cells[0].ordered,
        counts=np.stack([_padded(each, width) for each in expected]),
        gaps=np.stack([_padded(_gaps(each, of_nulls), width - 1) for each in cells]),
        blocks=np.stack([_padded(each, width) for each in by_block], axis=1) if by_block else None,
    )
    return group, np.stack([_padded(each, width) for each in found])


def _null_or_not(counts: Floats) -> Floats:
    return np.stack([counts[..., :-1].sum(axis=-1), counts[..., -1]], axis=-1)


def _gaps(cells: Cells, of_nulls: bool) -> Floats:
    return cells.gaps if cells.ordered and not of_nulls else np.zeros(0)


def _padded(counts: Floats, width: int) -> Floats:
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, width - counts.shape[-1])])


def _shares(counts: Floats) -> Floats:
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _span(reference: DatasetProfile, current: DatasetProfile) -> float | None:
    """How many of the reference's blocks the window lasts; by its rows where its times are not known."""
    if reference.blocks is None:
        return None
    blocks = int(np.count_nonzero(reference.blocks.rows))
    if blocks < 8:
        return None
    lasts = current.time_range
    if lasts is None:
        return current.rows / max(reference.rows, 1) * blocks
    length = float(np.median(np.diff(reference.blocks.edges)))
    return max((lasts[1] - lasts[0]) / timedelta(microseconds=1) / length, 1e-3)


def null_in_words(span: float | None, reference: DatasetProfile) -> str:
    """What chance is taken to be."""
    if span is None or reference.blocks is None:
        return "rows taken as independent: the reference has no time blocks"
    hours = float(np.median(np.diff(reference.blocks.edges))) / 3.6e9
    length = f"{hours / 24:g} days" if hours > 24 else "a day" if hours == 24 else f"{hours:g} hours"
    return f"resampled from {len(reference.blocks.rows)} blocks of {length} of the reference"


def seed_of(groups: list[Group]) -> int:
    """The seed of every draw: a digest of the reference's counts."""
    seed = 0
    for group in groups:
        seed = zlib.crc32(np.ascontiguousarray(group.counts).tobytes(), seed)
    return seed
