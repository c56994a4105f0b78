"""What a DAG run says of itself: its window, and whether it may promote.

Airflow's own dates and run types are read here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_mlops.call.source import windows_of
from airflow_mlops.errors import DataNotFoundError, DeclarationError
from airflow_mlops.spec.source import SqlSource, is_windowed
from airflow_mlops.spec.window import Grain, Window, parse_key, window_before


def window_from(value: Any, grain: Grain) -> Window | None:
    """A window from its key, or from the JSON of one that another task has resolved."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return parse_key(grain, value)
    start, end, key = value
    moments = [at if isinstance(at, datetime) else datetime.fromisoformat(at) for at in (start, end)]
    return Window(moments[0], moments[1], key)


def chosen_window(context: Mapping[str, Any], grain: Grain) -> Window | None:
    """The window that a person or a partition has chosen for a run, or None."""
    run = context["dag_run"]
    chosen = given(context, "window") or run.partition_key
    return parse_key(grain, str(chosen)) if chosen else None


def given(context: Mapping[str, Any], name: str) -> Any:
    """What a run was given under a name: as a DAG param or, where the DAG declares none, in its conf."""
    value = (context.get("params") or {}).get(name)
    return (context["dag_run"].conf or {}).get(name) if value is None else value


def is_backfill(context: Mapping[str, Any]) -> bool:
    """Whether a run is one of a backfill."""
    return bool(context["dag_run"].run_type == "backfill")


def promotion_of_run(context: Mapping[str, Any], declared: bool | None) -> bool | None:
    """Whether a run may promote: what it was told by ``promote``, else what the task declares, else no in a backfill.

    Raises:
        DeclarationError: when it was told something else than yes or no.
    """
    told = given(context, "promote")
    if told is None:
        return False if declared is None and is_backfill(context) else declared
    if not isinstance(told, bool):
        raise DeclarationError([f"the run's 'promote' is {told!r}; allowed: true, false"])
    return told


def window_of_run(
    context: Mapping[str, Any],
    grain: Grain,
    source: str | SqlSource | None,
    *,
    time: str | None = None,
    settle: timedelta = timedelta(0),
) -> Window | None:
    """The window of a run.

    - A person's choice comes first: the DAG param or conf key ``window``.
    - A partitioned run has its partition's key.
    - A scheduled or backfilled run has the newest window that was complete at its data interval's end. A cron schedule
      gives an interval of no width in Airflow 3, whose end is the tick itself, so the rule holds for both.
    - Any other run (by hand, by an asset) has the newest window whose data is there: of a database the newest one that
      had settled when the run came up; None where the source comes as one whole.
    """
    run = context["dag_run"]
    chosen = chosen_window(context, grain)
    if chosen:
        return chosen
    if run.run_type in ("scheduled", "backfill"):
        return window_before(grain, run.data_interval_end or run.logical_date or run.run_after)
    if isinstance(source, SqlSource) and is_windowed(source, time):
        return window_before(grain, (run.run_after or datetime.now(UTC)) - settle)
    if not isinstance(source, str) or "{window}" not in source:
        return None
    there = windows_of(source, grain)
    if not there:
        raise DataNotFoundError(
            f"no window of {source} has arrived yet", fix="correct the source, or wait for its data"
        )
    return there[-1]
