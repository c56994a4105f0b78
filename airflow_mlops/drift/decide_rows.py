"""The first form of the decision, on rows, until every caller has profiles.

A column counts as moved when chance does not explain it *and* it moved far enough to matter:

- chance: the two-sample Kolmogorov-Smirnov test for numbers, the chi-square test of homogeneity for categories and for
  the share of nulls, each at ``false_alarm_rate / number of tests`` (Bonferroni), so that all columns together raise a
  false alarm at most that often on independent rows;
- size: Evidently's normed Wasserstein distance (in standard deviations of the reference) for numbers, its
  Jensen-Shannon distance for categories, and the difference in the share of nulls, against the declared floors.

At a hundred thousand rows any difference is significant, and at a hundred any effect looks large: neither half decides
alone. Rows of one day resemble each other, which the tests do not know; the floors are what keeps that from alarming.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from airflow_mlops.errors import SchemaError
from airflow_mlops.spec.pipeline import DriftRule

Word = Literal["moved", "steady", "not_judged"]


class ColumnDrift(NamedTuple):
    """What is said of one column."""

    column: str
    word: Word
    kind: Literal["number", "category", "other"]
    effect: float | None
    p_value: float | None
    null_share: tuple[float, float]
    note: str


class Decision(NamedTuple):
    """Whether a window has drifted, and a word for every column."""

    status: Literal["ok", "drift", "insufficient_data"]
    reasons: tuple[str, ...]
    columns: tuple[ColumnDrift, ...]
    alpha: float
    report: Any
    """Evidently's snapshot, for its HTML; None where nothing was compared."""


class _Column(NamedTuple):
    name: str
    kind: Literal["number", "category", "other"]
    reference: pd.Series[Any]
    current: pd.Series[Any]
    nulls: tuple[int, int]
    rows: tuple[int, int]
    note: str

    @property
    def judged(self) -> bool:
        return self.kind != "other" and len(self.reference) > 0 and len(self.current) > 0


def decide(reference: pa.Table, current: pa.Table, rule: DriftRule) -> Decision:
    """Compare a window with its reference.

    Args:
        reference: the champion's reference rows, the watched columns only.
        current: the window's rows, with at least these columns.
        rule: the declared thresholds.

    Raises:
        SchemaError: when a watched column is missing from the window or holds another kind of values.
    """
    names = list(rule.columns or reference.column_names)
    unknown = [name for name in names if name not in reference.column_names]
    if unknown:
        raise SchemaError(
            f"the reference has no column {', '.join(map(repr, unknown))}", allowed=", ".join(reference.column_names)
        )
    missing = [name for name in names if name not in current.column_names]
    if missing:
        raise SchemaError(
            f"the window has no column {', '.join(map(repr, missing))}",
            allowed=", ".join(current.column_names),
            fix="mend the data at its source; drift is judged once the column is back",
        )
    if min(reference.num_rows, current.num_rows) < rule.min_rows:
        reason = (
            f"{current.num_rows} rows against {reference.num_rows} of the reference; "
            f"at least {rule.min_rows} each are needed"
        )
        return Decision("insufficient_data", (reason,), (), 0.0, None)
    columns = [_column(name, reference[name], current[name]) for name in names]
    judged = [column for column in columns if column.judged]
    effects, report = _effects(judged, rule) if judged else ({}, None)
    # Each column is tested for its values and for its nulls.
    alpha = rule.false_alarm_rate / max(1, len(judged) + len(columns))
    words = tuple(_word(column, effects.get(column.name), rule, alpha) for column in columns)
    moved = [word for word in words if word.word == "moved"]
    steady = sum(word.word == "steady" for word in words)
    if not moved:
        return Decision("ok", (f"none of {steady} columns moved",), words, alpha, report)
    moved.sort(key=lambda word: -(word.effect or 0.0))
    return Decision("drift", (*(word.note for word in moved), f"{steady} columns unchanged"), words, alpha, report)


def _column(name: str, reference: pa.ChunkedArray, current: pa.ChunkedArray) -> _Column:
    kinds = _kind(reference.type), _kind(current.type)
    rows = len(reference), len(current)
    if pa.types.is_null(current.type) or pa.types.is_null(reference.type):
        kinds = tuple(kind for kind in kinds if kind != "null") * 2 or ("other", "other")  # type: ignore[assignment]
    if kinds[0] != kinds[1]:
        raise SchemaError(
            f"the column {name!r} holds {current.type} in the window and {reference.type} in the reference",
            fix="mend the data at its source, or train a model on data of this form",
        )
    kind: Any = kinds[0]
    sides, nulls = [], []
    for side in (reference, current):
        values = side.to_pandas()
        if kind == "number":
            values = values.astype("float64")
            kept = values[np.isfinite(values)]
        else:
            kept = values.dropna().astype(str)
        sides.append(kept.reset_index(drop=True))
        nulls.append(len(values) - len(kept))
    note = "" if kind != "other" else f"holds {reference.type}, which is not compared"
    if kind != "other" and not len(sides[0]):
        note = "is empty in the reference"
    return _Column(name, kind, sides[0], sides[1], (nulls[0], nulls[1]), rows, note)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_null(kind):
        return "null"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        return "category"
    return "category" if pa.types.is_large_string(kind) else "other"


def _effects(columns: list[_Column], rule: DriftRule) -> tuple[dict[str, float], Any]:
    """Evidently's distance for every column, and its report of them."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    methods = {"number": ("wasserstein", rule.min_effect), "category": ("jensenshannon", rule.min_category_effect)}
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "number"],
        categorical_columns=[column.name for column in columns if column.kind == "category"],
    )
    frames = [
        Dataset.from_pandas(pd.DataFrame({column.name: getattr(column, side) for column in columns}), definition)
        for side in ("current", "reference")
    ]
    metrics = [
        ValueDrift(column=column.name, method=methods[column.kind][0], threshold=methods[column.kind][1])
        for column in columns
    ]
    with np.errstate(all="ignore"):
        report = Report(metrics, include_tests=True).run(*frames)
        found = report.dict()["metrics"]
    return {column.name: float(metric["value"]) for column, metric in zip(columns, found, strict=True)}, report


def _word(column: _Column, effect: float | None, rule: DriftRule, alpha: float) -> ColumnDrift:
    shares = tuple(nulls / rows for nulls, rows in zip(column.nulls, column.rows, strict=True))
    gone = shares[1] - shares[0]
    tables = [[nulls, rows - nulls] for nulls, rows in zip(column.nulls, column.rows, strict=True)]
    if abs(gone) >= rule.min_category_effect and _chi_square(np.array(tables)) < alpha:
        note = f"{column.name}: nulls went from {shares[0]:.1%} to {shares[1]:.1%}"
        return ColumnDrift(column.name, "moved", column.kind, abs(gone), None, (shares[0], shares[1]), note)
    if effect is None or not column.judged:
        note = f"{column.name}: {column.note or 'is empty in the window'}"
        return ColumnDrift(column.name, "not_judged", column.kind, None, None, (shares[0], shares[1]), note)
    chance = _p_value(column)
    floor = rule.min_effect if column.kind == "number" else rule.min_category_effect
    moved = bool(np.isfinite(effect)) and effect >= floor and chance < alpha
    if column.kind == "number":
        means = column.reference.mean(), column.current.mean()
        note = f"{column.name} moved by {effect:.2f} standard deviations (mean {means[0]:.4g} to {means[1]:.4g})"
    else:
        note = f"{column.name} moved by {effect:.2f} in Jensen-Shannon distance{_largest_change(column)}"
    if not moved:
        note = f"{column.name}: {effect:.2f}, below {floor:g}" if effect < floor else f"{column.name}: within chance"
    word: Word = "moved" if moved else "steady"
    return ColumnDrift(column.name, word, column.kind, effect, chance, (shares[0], shares[1]), note)


def _p_value(column: _Column) -> float:
    if column.kind == "number":
        test = stats.ks_2samp(column.reference.to_numpy(), column.current.to_numpy(), method="asymp")
        return float(test.pvalue)
    counts = pd.concat([column.reference.value_counts(), column.current.value_counts()], axis=1).fillna(0)
    return _chi_square(counts.to_numpy())


def _chi_square(table: Any) -> float:
    """The p-value of the chi-square test of homogeneity; categories that neither side has are left out."""
    table = table[:, table.sum(axis=0) > 0]
    table = table[table.sum(axis=1) > 0]
    if min(table.shape) < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _largest_change(column: _Column) -> str:
    shares = [side.value_counts(normalize=True) for side in (column.reference, column.current)]
    change = shares[1].sub(shares[0], fill_value=0.0)
    if change.empty:
        return ""
    value = change.abs().idxmax()
    return f" ({value!r} went from {shares[0].get(value, 0.0):.1%} to {shares[1].get(value, 0.0):.1%})"
