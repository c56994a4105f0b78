"""Evidently's report of a decision: scores of all rows, plots of a few that stand for them.

A column of numbers is drawn from 2,000 of its quantiles and a column of categories from as many rows in its
proportions, so the report takes as long and is as large for a thousand rows as for a billion. Every column has its
line, and the `PLOTS` that moved most are drawn. Only who wants a report imports this module: Evidently takes seconds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import (
    BoundTest,
    MetricTest,
    MetricTestResult,
    SingleValue,
    SingleValueCalculation,
    SingleValueMetric,
    TestStatus,
)
from evidently.legacy.calculations.data_drift import get_one_column_drift
from evidently.legacy.core import ColumnType
from evidently.legacy.metric_results import DatasetColumns, DatasetUtilityColumns
from evidently.legacy.options.base import Options
from evidently.legacy.options.color_scheme import ColorOptions
from evidently.legacy.options.data_drift import DataDriftOptions
from evidently.legacy.renderers.html_widgets import CounterData, counter, table_data
from evidently.metrics.column_statistics import ValueDriftCalculation

from airflow_mlops.drift.profile import ColumnProfile, DatasetProfile
from airflow_mlops.drift.statistics import jensen_shannon, quantiles, wasserstein

if TYPE_CHECKING:
    from airflow_mlops.drift.decide import ColumnDrift, Decision

ROWS = 2_000
"""How many rows stand for a column."""
PLOTS = 40
"""How many columns are drawn, those that moved first."""
_MOST_CATEGORIES = 30
_PRESET_TESTS, _PRESET_FEW, _PRESET_THRESHOLD, _PRESET_SHARE = 1_000, 5, 0.1, 0.5
_METHODS = {"number": "wasserstein", "category": "jensenshannon"}
_NAMES = {"number": "Wasserstein distance (normed) of all rows", "category": "Jensen-Shannon distance of all rows"}


def write_html(reference: DatasetProfile, current: DatasetProfile, decision: Decision, file: Path) -> None:
    """Write the report of a decision as one HTML file that loads nothing from elsewhere.

    Args:
        reference: what was held against.
        current: what was judged.
        decision: what was decided, with a word on every column.
        file: where to write it.
    """
    drawn = [each for each in decision.columns if _drawable(each, reference, current)]
    drawn = sorted(drawn, key=lambda each: (each.word != "moved", -(each.effect or 0.0)))[:PLOTS]
    numbers = [each.column for each in drawn if each.kind == "number"]
    definition = DataDefinition(
        numerical_columns=numbers, categorical_columns=[each.column for each in drawn if each.column not in numbers]
    )
    sides = [
        Dataset.from_pandas(
            pd.DataFrame({each.column: rows_of(side.columns[each.column]) for each in drawn}, range(ROWS)),
            definition,
        )
        for side in (current, reference)
    ]
    theirs = {
        each.column: preset_flags(reference.columns[each.column], current.columns[each.column])
        for each in decision.columns
        if _drawable(each, reference, current)
    }
    lines = [_line(each, theirs.get(each.column)) for each in decision.columns]
    metrics: list[Any] = [_Words(columns=lines, said=_said(decision, current), preset=_preset_said(theirs))]
    metrics += [
        _ExactDrift(
            column=each.column,
            kind=each.kind,
            score=float(each.effect or 0.0),
            drifted=each.word == "moved",
            threshold=float(each.floor),
            note=each.note,
        )
        for each in drawn
    ]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        Report(metrics, include_tests=True).run(*sides).save_html(str(file))


def _drawable(column: ColumnDrift, reference: DatasetProfile, current: DatasetProfile) -> bool:
    sides = [side.columns.get(column.column) for side in (reference, current)]
    return column.effect is not None and all(
        side is not None and side.valid > 0 and side.kind in _METHODS and side.kind == column.kind for side in sides
    )


def preset_flags(reference: ColumnProfile, current: ColumnProfile) -> bool | None:
    """Whether Evidently's preset flags a column by all its defaults.

    Of more than 1,000 values of the reference it takes the normed Wasserstein distance of numbers of more than five
    different values and the Jensen-Shannon distance of all else, and flags 0.1 and more. Of fewer it tests the
    rows themselves, which a profile does not hold: None.
    """
    if reference.valid <= _PRESET_TESTS:
        return None
    different = np.union1d(reference.bins.index, current.bins.index)
    exact = reference.bins.exact and current.bins.exact
    few = exact and len(different) <= _PRESET_FEW
    distance = wasserstein if reference.kind == "number" and not few else jensen_shannon
    return distance(reference, current) >= _PRESET_THRESHOLD


def rows_of(column: ColumnProfile) -> pd.Series[Any]:
    """The `ROWS` rows that stand for a column: quantiles of its numbers, or its categories in their proportions."""
    if column.kind == "number":
        return pd.Series(quantiles(column, (np.arange(ROWS) + 0.5) / ROWS))
    names, counts = list(column.counts)[:_MOST_CATEGORIES], list(column.counts.values())[:_MOST_CATEGORIES]
    other = column.valid - sum(counts)
    names, counts = ([*names, "(other)"], [*counts, other]) if other else (names, counts)
    ends = np.round(np.cumsum(counts) / max(1, sum(counts)) * ROWS).astype(int)
    return pd.Series(np.repeat(names, np.diff(ends, prepend=0)), dtype=object)


def _said(decision: Decision, current: DatasetProfile) -> str:
    return f"{decision.status}: {'; '.join(decision.reasons)} ({current.rows:,} rows)"


def _preset_said(flags: dict[str, bool | None]) -> str:
    known = [flag for flag in flags.values() if flag is not None]
    if not known:
        return f"not known: up to {_PRESET_TESTS:,} values of a reference it tests the rows themselves"
    share = sum(known) / len(known)
    return f"{'drift' if share >= _PRESET_SHARE else 'no drift'}: {sum(known)} of {len(known)} columns"


def _line(column: ColumnDrift, preset: bool | None) -> list[str]:
    effect = "" if column.effect is None else f"{column.effect:.4g}"
    theirs = "" if preset is None else "drift" if preset else "no drift"
    return [column.column, column.word.replace("_", " "), effect, theirs, column.note]


class _Words(SingleValueMetric):
    columns: list[list[str]]
    said: str
    preset: str


class _WordsCalculation(SingleValueCalculation[_Words]):
    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> SingleValue:
        del context, current_data, reference_data
        moved = sum(line[1] == "moved" for line in self.metric.columns)
        result = self.result(moved)
        heads = ["column", "word", "distance", "Evidently's preset", "what was found"]
        result.widget = [
            counter(counters=[CounterData(self.metric.said, "What was decided, from all rows")]),
            counter(counters=[CounterData(self.metric.preset, "What Evidently's preset would say")]),
            table_data(column_names=heads, data=self.metric.columns, title="Every column"),
        ]
        return result

    def display_name(self) -> str:
        return "Columns that moved"


class _ExactDrift(SingleValueMetric):
    column: str
    kind: str
    score: float
    drifted: bool
    threshold: float
    note: str


class _Bound(BoundTest[SingleValue]):
    def run_test(self, context: Any, calculation: Any, metric_result: Any) -> Any:
        raise NotImplementedError


class _Test(MetricTest):
    def to_test(self) -> Any:
        raise NotImplementedError


class _ExactDriftCalculation(SingleValueCalculation[_ExactDrift]):
    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> SingleValue:
        del context
        metric = self.metric
        nothing = DatasetUtilityColumns(date=None, id=None, target=None, prediction=None)
        number = metric.kind == "number"
        drift = get_one_column_drift(
            current_data=current_data.as_dataframe(),
            reference_data=reference_data.as_dataframe(),
            column_name=metric.column,
            options=DataDriftOptions(all_features_stattest=_METHODS[metric.kind]),
            dataset_columns=DatasetColumns(
                utility_columns=nothing,
                target_type=None,
                task=None,
                num_feature_names=[metric.column] if number else [],
                cat_feature_names=[] if number else [metric.column],
                text_feature_names=[],
                datetime_feature_names=[],
                target_names=None,
            ),
            column_type=ColumnType.Numerical if number else ColumnType.Categorical,
            agg_data=True,
        )
        # The plots are of the rows that stand for the column; what is said of it is of all rows.
        drift.drift_score, drift.drift_detected = metric.score, metric.drifted
        drift.stattest_name, drift.stattest_threshold = _NAMES[metric.kind], metric.threshold
        result = self.result(metric.score)
        result.widget = ValueDriftCalculation._render(self, drift, Options(), ColorOptions())
        result.set_tests(
            [
                MetricTestResult(
                    id="drift",
                    name=f"Drift of {metric.column}",
                    description=metric.note,
                    status=TestStatus.FAIL if metric.drifted else TestStatus.SUCCESS,
                    metric_config=self.to_metric_config(),
                    test_config={},
                    bound_test=_Bound(test=_Test(), metric_fingerprint=self.to_metric().metric_id),
                )
            ]
        )
        return result

    def display_name(self) -> str:
        return f"Drift of {self.metric.column}"
