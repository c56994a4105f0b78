"""A declared drift rule on the history of its source: nothing is written, and no registry is asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from airflow_mlops.call.store import Store
from airflow_mlops.drift.collect import profile_batches
from airflow_mlops.drift.decide import Decision, Past, decide
from airflow_mlops.drift.power import Calibration, calibration
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.drift.reference import with_blocks
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.pipeline import DataDrift
from airflow_mlops.spec.stages import Extract
from airflow_mlops.spec.window import Window
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.tables import read_table

LADDER = (300, 1_000, 5_000, 50_000)
"""Sizes of windows that are shown beside the pipeline's own."""


class Judged(NamedTuple):
    """What a window of the past would have been called, against the windows before it."""

    window: str
    rows: int
    decision: Decision
    evidently: str | None
    """The columns that Evidently's default preset flags, and its verdict on the whole."""


class History(NamedTuple):
    """What calibration says."""

    reference: str
    rows: int
    sizes: tuple[Calibration, ...]
    """The pipeline's own windows first."""
    windows: tuple[Judged, ...]


def calibrate(
    params: Extract,
    windows: tuple[Window, ...],
    rule: DataDrift,
    *,
    columns: tuple[str, ...],
    without: tuple[str, ...],
    train: int,
    last: int,
    evidently: bool,
    store: Store,
) -> History:
    """Judge each window of a source against those before it, and say what the newest reference allows.

    Args:
        params: how the rows are read.
        windows: those whose data is there, oldest first; none where the source is one whole.
        rule: the declared rule.
        columns: the columns watched. Default: all but ``without``.
        without: columns that are not watched.
        train: how many windows a training reads.
        last: how many windows are judged together.
        evidently: whether Evidently's default preset judges as well.
        store: where rows are kept while this runs.

    Raises:
        DataNotFoundError: when there is no window.
    """
    if not windows:
        table = read_table(extract(params, None, store), store)
        whole = _profile(table, _watched(table, columns, without), params.time, blocks=True)
        return History("all rows", whole.rows, _sizes(whole, rule, None), ())
    tables = {window.key: read_table(extract(params, window, store), store) for window in windows}
    judged: list[Judged] = []
    past: list[Past] = []
    for at in range(train + last - 1, len(windows)):
        before, now = windows[at - last - train + 1 : at - last + 1], windows[at - last + 1 : at + 1]
        sides = [pa.concat_tables([tables[each.key] for each in part]) for part in (before, now)]
        watched = _watched(sides[0], columns, without)
        reference = _profile(sides[0], watched, params.time, blocks=True)
        current = _profile(sides[1], watched, params.time)
        span = now[0].start, now[-1].end
        decision = decide(reference, current, rule, past, span)
        past.append(Past(*span, tuple(each.column for each in decision.columns if each.word == "moved")))
        said = _evidently(*(side.select(watched) for side in sides)) if evidently else None
        judged.append(Judged(windows[at].key, current.rows, decision, said))
    if len(windows) < train:
        raise DataNotFoundError(
            f"{len(windows)} windows of the source are there, and a training reads {train}",
            fix="wait for more, or lower train.windows.last",
        )
    newest = windows[-train:]
    table = pa.concat_tables([tables[window.key] for window in newest])
    reference = _profile(table, _watched(table, columns, without), params.time, blocks=True)
    own = windows[-last:]
    rows = sum(tables[window.key].num_rows for window in own)
    days = (own[-1].end - own[0].start).total_seconds() / 86_400
    name = f"{newest[0].key} to {newest[-1].key}" if train > 1 else newest[0].key
    return History(name, reference.rows, _sizes(reference, rule, (rows, days)), tuple(judged))


def _sizes(reference: DatasetProfile, rule: DataDrift, own: tuple[int, float] | None) -> tuple[Calibration, ...]:
    first = (calibration(reference, rule, *own),) if own else ()
    return first + tuple(calibration(reference, rule, rows) for rows in LADDER)


def _watched(table: pa.Table, columns: tuple[str, ...], without: tuple[str, ...]) -> list[str]:
    return list(columns) or [name for name in table.column_names if name not in without]


def _profile(table: pa.Table, columns: list[str], time: str | None, *, blocks: bool = False) -> DatasetProfile:
    wanted = [*columns, *([time] if time and time not in columns else [])]
    made = profile_batches(table.to_batches(), table.schema, wanted, time)
    if blocks:
        made = with_blocks(made, lambda names: table.select(names).to_batches())
    return made.select(tuple(columns))


def _evidently(reference: pa.Table, current: pa.Table) -> str:
    from evidently import Report
    from evidently.presets import DataDriftPreset

    frames = [table.to_pandas() for table in (current, reference)]
    found: Any = Report([DataDriftPreset()]).run(*frames).dict()["metrics"][0]["value"]
    share, count = float(found["share"]), int(found["count"])
    return f"{'drift' if share >= 0.5 else 'ok'} ({count} of {len(reference.column_names)} columns)"
