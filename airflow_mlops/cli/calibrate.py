"""``airflow-mlops calibrate``: a drift rule's false alarms and power on the source's history, before it counts."""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import windows_of
from airflow_mlops.call.store import Store
from airflow_mlops.cli.run import choose_window
from airflow_mlops.cli.where import choose_declaration
from airflow_mlops.spec.load import Declaration
from airflow_mlops.spec.plan import monitor_node
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.stages import Monitor
from airflow_mlops.spec.window import Window, last_windows

if TYPE_CHECKING:
    from airflow_mlops.drift.power import Calibration
    from airflow_mlops.stages.calibration import History

_A_YEAR = {"hour": 8766, "day": 365, "week": 52, "month": 12, "quarter": 4, "year": 1}


def calibrate(options: argparse.Namespace) -> int:
    """Print what the declared rule would do."""
    declaration = choose_declaration(options.file, options.pipeline)
    pipeline = declaration.pipeline
    params: Monitor = monitor_node(pipeline).params.resolved(declaration.base)  # type: ignore[assignment]
    data = pipeline.data
    with tempfile.TemporaryDirectory() as folder:
        history: History = stage_module("calibration").calibrate(
            params.extract.model_copy(update={"last": 1}),
            _windows(declaration, params, options),
            params.data_drift,
            columns=params.data_drift.columns,
            without=(data.target, *data.key, *data.drop, *([data.time] if data.time else [])),
            train=pipeline.train.windows.last,
            last=params.last,
            evidently=options.evidently,
            store=Store(folder),
        )
    if options.json:
        print(json.dumps(_as_json(history), indent=1))
    else:
        _print(history, pipeline.name, params, _A_YEAR[pipeline.grain] / params.last)
    return 0


def _windows(declaration: Declaration, params: Monitor, options: argparse.Namespace) -> tuple[Window, ...]:
    """The windows of the past: those whose files are there, or the last ones of a database that have settled."""
    pipeline = declaration.pipeline
    newest = choose_window(declaration, options.window)
    if newest is None:
        return ()
    if isinstance(params.source, SqlSource) or "{window}" not in params.source:
        return last_windows(pipeline.grain, newest, options.windows)
    there = [each for each in windows_of(params.source, pipeline.grain) if each.start <= newest.start]
    return tuple(there[-options.windows :])


def _as_json(history: History) -> dict[str, Any]:
    return {
        "reference": {"windows": history.reference, "rows": history.rows},
        "sizes": [{**each._asdict(), "columns": [one._asdict() for one in each.columns]} for each in history.sizes],
        "windows": [
            {
                "window": each.window,
                "rows": each.rows,
                "status": each.decision.status,
                "alarm": each.decision.alarm,
                "moved": [one.column for one in each.decision.columns if one.word == "moved"],
                "reasons": list(each.decision.reasons),
                "evidently": each.evidently,
            }
            for each in history.windows
        ],
    }


def _print(history: History, name: str, params: Monitor, a_year: float) -> None:
    rule, sizes = params.data_drift, history.sizes
    print(f"{name}: reference {history.reference}, {history.rows:,} rows; {sizes[0].null}\n")
    print(f"False alarms to expect (declared: at most {rule.false_alarm_rate:.2%} of windows, before confirmation)")
    own = ["own window" if len(sizes) > 4 else "", *[""] * (len(sizes) - 1)]
    table: list[tuple[str, ...]] = [("rows", "", "alarms", "a year", "threshold (z)")]
    table += [
        (
            f"{each.rows:,}",
            said,
            f"{each.false_alarms:.2%}",
            f"{each.false_alarms * a_year:.2f}",
            f"{each.threshold:.2f}",
        )
        for each, said in zip(sizes, own, strict=True)
    ]
    _print_table(table)
    print("\nSmallest move found in 95% of windows: of numbers in standard deviations, of categories the share of")
    print("rows that goes from the frequent ones to the others; * is where the floor stands, not chance")
    table = [("column", *(f"{each.rows:,} rows" for each in sizes))]
    table += [
        (sizes[0].columns[at].column, *(_reach(each, at) for each in sizes)) for at in range(len(sizes[0].columns))
    ]
    _print_table(table)
    if history.windows:
        print("\nThe past, each window against the training windows before it")
        said = any(each.evidently for each in history.windows)
        table = [("window", "rows", "verdict", *(["Evidently's preset"] if said else []), "why")]
        table += [
            (
                each.window,
                f"{each.rows:,}",
                each.decision.status,
                *([each.evidently or ""] if said else []),
                each.decision.reasons[0],
            )
            for each in history.windows
        ]
        _print_table(table)


def _reach(size: Calibration, at: int) -> str:
    found = size.columns[at]
    if found.smallest is None:
        return "none"
    value = f"{found.smallest:.2f}" if found.kind == "number" else f"{found.smallest:.0%}"
    return f"{value}{'*' if found.limited_by == 'floor' else ' '}"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
