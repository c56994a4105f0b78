"""Waits for the data of the window that is to be judged next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import random
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.call.store import Store
from airflow_mlops.errors import MlopsError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.verdicts import (
    Sensor,
    Verdicts,
    has_arrived,
    labels_due,
    next_predicted,
    next_window,
)
from airflow_mlops.spec.base import parse_duration
from airflow_mlops.spec.source import source_from
from airflow_mlops.spec.window import Grain, Window, parse_key


def arrived_window(
    *,
    store: str,
    pipeline: str,
    source: str | dict[str, Any],
    grain: Grain,
    run: str,
    window: str | None = None,
    settle: str = "0s",
    ledger: Ledger | None = None,
) -> Window | None:
    """The window that a monitoring run judges, once its data is there; None until then.

    :param store: the artifact store's root, where the ledger and earlier verdicts are.
    :param pipeline: the pipeline's name.
    :param source: where its rows come from.
    :param grain: the calendar piece that the windows step by.
    :param run: the monitoring run.
    :param window: the key of one window to wait for. Default: the one after all that were judged.
    :param settle: how long after its end a window of a database, or of one file, may still receive rows.
    :param ledger: the pipeline's, where it was read before. Default: it is read.
    """
    if window:
        chosen: Window | None = parse_key(grain, window)
    else:
        root = Store(store)
        chosen = next_window(Verdicts(root, pipeline, "data_drift"), ledger or Ledger(root, pipeline), grain, run)
    if chosen is None or not has_arrived(source_from(source), chosen, parse_duration(settle)):
        return None
    return chosen


def arrived_predictions(
    *,
    store: str,
    pipeline: str,
    sensor: Sensor,
    predictions: str,
    grain: Grain,
    run: str,
    window: str | None = None,
    labels: str | dict[str, Any] | None = None,
    label_delay: str = "0s",
    quiet: str = "0s",
    ledger: Ledger | None = None,
) -> Window | None:
    """The window of predictions that a run judges, once they, and the labels that it asks for, are there.

    :param store: the artifact store's root.
    :param pipeline: the pipeline's name.
    :param sensor: who asks.
    :param predictions: where they are, with ``{window}``.
    :param grain: the calendar piece that windows step by.
    :param run: the monitoring run.
    :param window: the key of one window to wait for. Default: the oldest that was not judged.
    :param labels: where the labels are. Default: none are asked for.
    :param label_delay: how long after a window's end its labels are complete.
    :param quiet: how long after its last prediction a window that was served counts as whole.
    :param ledger: the pipeline's, where it was read before. Default: it is read.
    """
    root, source, delay = Store(store), source_from(labels) if labels else None, parse_duration(label_delay)
    verdicts = Verdicts(root, pipeline, sensor)
    key = window or verdicts.taken(run)
    if key:
        chosen = parse_key(grain, key)
        there = has_arrived(predictions, chosen) and labels_due(source, chosen, delay)
        return chosen if there else None
    known = ledger or Ledger(root, pipeline)
    return next_predicted(verdicts, known, predictions, grain, source, delay, parse_duration(quiet))


def arrived(arguments: dict[str, Any], ledger: Ledger | None = None) -> Window | None:
    """The window that may be judged now, by the arguments of `arrived_window` or `arrived_predictions`."""
    look = arrived_predictions if "predictions" in arguments else arrived_window
    return look(**arguments, ledger=ledger)


NOTED = 8.0
"""Seconds after which Airflow has taken note of a deferral. It fails a task that runs again before that ("finished with
state success, but the task instance's state attribute is running", apache/airflow#72716). Its worker reports up to
``[workers] min_heartbeat_interval`` late, 5 seconds by default, and the scheduler reads that in its next loop."""


class WindowTrigger(BaseTrigger):
    """Fires once, with the window's key, when its data has arrived.

    :param arguments: those of `arrived_window`, or of `arrived_predictions`.
    :param poll_interval: seconds between two looks.
    """

    def __init__(self, arguments: dict[str, Any], poll_interval: float = 60.0) -> None:
        super().__init__()
        self.arguments, self.poll_interval = arguments, poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The trigger as Airflow stores it."""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return name, {"arguments": self.arguments, "poll_interval": self.poll_interval}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for the window's data until it is there."""
        # A triggerer that starts has all its triggers at once: they take their turns within the interval.
        pause = min(self.poll_interval, NOTED) + self.poll_interval * random()  # noqa: S311
        ledger: Ledger | None = None
        while True:
            await asyncio.sleep(pause)
            pause = self.poll_interval
            try:
                # Its entries never change, so each is read once for all looks.
                ledger = ledger or Ledger(Store(self.arguments["store"]), self.arguments["pipeline"])
                window = await asyncio.to_thread(arrived, self.arguments, ledger)
            except MlopsError as error:
                if error.retryable:
                    self.log.warning("cannot look for data now: %s", error)
                    continue
                # The worker meets the same error and says it in the task's log.
                yield TriggerEvent({"window": None})
                return
            if window is not None:
                yield TriggerEvent({"window": window.key})
                return
