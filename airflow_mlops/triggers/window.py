"""Waits for the data of the window that is to be judged next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.call.store import Store
from airflow_mlops.errors import MlopsError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.verdicts import Verdicts, has_arrived, next_window
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
) -> Window | None:
    """The window that a monitoring run judges, once its data is there; None until then.

    :param store: the artifact store's root, where the ledger and earlier verdicts are.
    :param pipeline: the pipeline's name.
    :param source: where its rows come from.
    :param grain: the calendar piece that the windows step by.
    :param run: the monitoring run.
    :param window: the key of one window to wait for. Default: the one after all that were judged.
    :param settle: how long after its end a window of a database, or of one file, may still receive rows.
    """
    if window:
        chosen: Window | None = parse_key(grain, window)
    else:
        root = Store(store)
        chosen = next_window(Verdicts(root, pipeline), Ledger(root, pipeline), grain, run)
    if chosen is None or not has_arrived(source_from(source), chosen, parse_duration(settle)):
        return None
    return chosen


class WindowTrigger(BaseTrigger):
    """Fires once, with the window's key, when its data has arrived.

    :param arguments: those of `arrived_window`.
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
        while True:
            await asyncio.sleep(self.poll_interval)
            try:
                window = await asyncio.to_thread(lambda: arrived_window(**self.arguments))
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
