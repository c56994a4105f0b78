"""Monitoring: a window's rows against the reference of the champion that serves today.

What is compared are profiles: the champion's was logged with it, and each file's is kept under the digest of its rows,
so a window is read once, however often and in however many comparisons it is looked at.
"""

from __future__ import annotations

import json
import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.drift.columns import facts
from airflow_mlops.drift.decide import ColumnDrift, Decision, Past, decide
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.errors import DataNotFoundError, SchemaError
from airflow_mlops.registry.mlflow_api import Version, mlflow_api
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.verdicts import NO_WINDOW, Verdicts
from airflow_mlops.spec.pipeline import WindowDrift
from airflow_mlops.spec.stages import Monitor
from airflow_mlops.spec.window import Grain, Window, last_windows, parse_key
from airflow_mlops.stages.profiles import reference_in
from airflow_mlops.stages.tables import read_table
from airflow_mlops.stages.verdict import said_of, tell_drift
from airflow_mlops.stages.watched import watched

log = logging.getLogger(__name__)


class Told(Protocol):
    """What was said of a pipeline's windows, as `Verdicts` keeps it."""

    def windows(self) -> list[str]:
        """The keys of the windows judged, sorted."""

    def of_window(self, key: str) -> list[dict[str, Any]]:
        """Every verdict on a window, oldest first."""


class Compared(NamedTuple):
    """A window held against a champion's reference."""

    said: dict[str, Any]
    """What was found, as it is kept."""
    decision: Decision
    sides: tuple[DatasetProfile, DatasetProfile]
    """The reference and the window."""


def run(call: Call, params: Monitor, store: Store) -> Outcome:
    """Judge the window; outputs ``verdict`` and, on an alarm, Evidently's ``report``."""
    registry = ModelRegistry.of(call, store)
    champion = registry.need_champion()
    verdicts = Verdicts(store, call.pipeline, "data_drift")
    said, decision, sides = compare(call, params, champion, registry.ref.uri, verdicts, store)
    return tell_drift(call, store, registry, said, decision, sides)


def compare(call: Call, params: Monitor, champion: Version, registry: str, verdicts: Told, store: Store) -> Compared:
    """Hold the window of a Call against a champion's reference.

    Args:
        call: whose window is judged.
        params: where its rows are, and when they have drifted.
        champion: the version whose reference is meant.
        registry: the URI of the registry that has it.
        verdicts: what was said of earlier windows; those on the same champion may confirm an alarm.
        store: where profiles are kept.

    Raises:
        SchemaError: when the window has not the form of the reference.
        DataNotFoundError: when there is no data for it.
    """
    reference = reference_in(champion.run_id, registry, store)
    current, data, parts = watched(params, call, store, reference.others)
    rule = params.data_drift
    together = None
    if rule.multivariate and min(reference.rows, current.rows) >= rule.min_rows:
        rule = rule.model_copy(update={"false_alarm_rate": rule.false_alarm_rate / 2})
        names = [fact.name for fact in facts(reference, current, rule.columns) if fact.status == "comparable"]
        rows = _training_rows(champion.run_id, registry, store)
        together = _together(rows, parts, names, params.time, rule.false_alarm_rate, store)
    past = past_of(verdicts, params.data_drift, call.window, params.grain, params.last, champion.version)
    decision = decide(reference, current, rule, past, _span(call, params), together)
    require_form(decision)
    said = {**said_of(decision, current.rows, champion.version), "data": data}
    return Compared(said, decision, (reference, current))


def _training_rows(run_id: str, registry: str, store: Store) -> pa.Table | None:
    """The rows that the champion was trained on; None where they are no longer kept."""
    from airflow_mlops.stages.model_io import INPUTS

    with tempfile.TemporaryDirectory() as folder:
        made = json.loads(mlflow_api(registry).fetch(run_id, INPUTS, Path(folder)).read_bytes())["inputs"]
    try:
        return read_table(ArtifactRef.model_validate(made.get("data") or made["train"]), store)
    except DataNotFoundError:
        return None


def _together(
    rows: pa.Table | None, parts: list[ArtifactRef], names: list[str], time: str | None, rate: float, store: Store
) -> ColumnDrift:
    """The word on all columns together."""
    # scikit-learn is imported only where it was asked for.
    from airflow_mlops.stages import domain

    if rows is None or not names:
        why = "the rows of the champion's training are no longer kept" if names else "no column can be compared"
        return domain.not_judged(why)
    current = pa.concat_tables([read_table(part, store) for part in parts], promote_options="default")
    both = time if time in rows.column_names and time in current.column_names else None
    return domain.told_apart(rows, current, names, both, rate)


def _span(call: Call, params: Monitor) -> tuple[datetime, datetime] | None:
    """From when to when the rows judged are; those of several windows where they are judged together."""
    if call.window is None:
        return None
    return last_windows(params.grain, call.window, params.last)[0].start, call.window.end


def past_of(
    verdicts: Told, rule: WindowDrift, window: Window | None, grain: Grain, last: int, champion: str
) -> list[Past]:
    """The latest verdicts before this window against the same champion; only those may confirm an alarm.

    Args:
        verdicts: of one sensor.
        rule: how many of them are needed.
        window: the window that is judged.
        grain: the calendar piece that windows step by.
        last: how many windows are judged together.
        champion: the version whose reference is meant.
    """
    if window is None:
        return []
    before = [key for key in verdicts.windows() if key != NO_WINDOW and parse_key(grain, key).end <= window.start]
    found: list[Past] = []
    for key in sorted(before, reverse=True):
        # Windows judged together overlap, and only every ``last`` of them counts.
        if len(found) >= (rule.within or rule.consecutive or 2) * last:
            break
        judged = [each for each in verdicts.of_window(key) if each["champion"] == champion]
        judged = [each for each in judged if each["status"] in ("ok", "warn", "drift")]
        if judged:
            past = parse_key(grain, key)
            start = last_windows(grain, past, last)[0].start
            found.append(Past(start, past.end, tuple(judged[-1]["moved"])))
    return found


def require_form(decision: Decision) -> None:
    """Refuse a window whose columns are not what they were: no retraining mends that, and a person must look."""
    broken = [column.note for column in decision.columns if column.word == "broken"]
    if broken:
        raise SchemaError(
            f"the window has not the form of the reference: {'; '.join(broken)}",
            fix="mend the data at its source, or train a model on data of this form",
        )
