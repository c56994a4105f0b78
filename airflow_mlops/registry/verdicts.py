"""Monitoring verdicts by window, and which window comes next. File names and small JSON only; no data is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_mlops.call.source import files_of
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Grain, Window, parse_key, shift


class Verdicts:
    """The verdicts of one pipeline's monitoring."""

    def __init__(self, store: Store, pipeline: str) -> None:
        self.store, self.pipeline = store, pipeline

    def record(self, call: Call, verdict: dict[str, Any]) -> None:
        """Keep the verdict of a Call; a retry of the same run finds it there and changes nothing."""
        key = call.window.key if call.window else "all"
        body = {**verdict, "run": call.run, "window": key, "at": datetime.now(UTC).isoformat()}
        self.store.create_json(body, "verdicts", self.pipeline, key, f"{call.identity}.json")

    def record_failure(self, call: Call, reason: str) -> None:
        """Write down that a window could not be judged; a later verdict of the same run stands beside it."""
        key = call.window.key if call.window else "all"
        body = {
            "status": "error",
            "reasons": [reason],
            "moved": [],
            "columns": [],
            "rows": 0,
            "champion": None,
            "run": call.run,
            "window": key,
            "at": datetime.now(UTC).isoformat(),
        }
        self.store.create_json(body, "verdicts", self.pipeline, key, f"{call.identity}.failed.json")

    def windows(self) -> list[str]:
        """The keys of the windows judged, sorted."""
        return self.store.names("verdicts", self.pipeline)

    def of_window(self, key: str) -> list[dict[str, Any]]:
        """Every verdict on a window, oldest first."""
        names = self.store.names("verdicts", self.pipeline, key)
        found = [self.store.read_json("verdicts", self.pipeline, key, name) for name in names]
        return sorted((verdict for verdict in found if verdict), key=lambda verdict: str(verdict["at"]))

    def all(self) -> list[dict[str, Any]]:
        """Every verdict, by window."""
        return [verdict for key in self.windows() for verdict in self.of_window(key)]


def next_window(verdicts: Verdicts, ledger: Ledger, grain: Grain, run: str) -> Window | None:
    """The window that a monitoring run judges: the one after all that were judged and that the champion has seen.

    A run that has judged one already gets that one again, so that its retry does not move on. None while there is no
    champion, or where the champion's training had no window.
    """
    judged = verdicts.windows()
    if judged and any(verdict["run"] == run for verdict in verdicts.of_window(judged[-1])):
        return parse_key(grain, judged[-1])
    champion = ledger.promotion()
    if champion is None or champion.window is None:
        return None
    # A window that went into training is not judged: it would be compared with itself.
    newest = max((parse_key(grain, key) for key in (*judged, champion.window)), key=lambda window: window.start)
    return shift(grain, newest, 1)


def has_arrived(source: str | SqlSource, window: Window, settle: timedelta = timedelta(0)) -> bool:
    """Whether a window's data is there.

    A source with ``{window}`` has arrived when its files are there; they must appear whole, by a rename or an upload.
    Of any other source, and of a database, the window must be over and have settled; a database is not asked.
    """
    over = datetime.now(UTC) >= window.end + settle
    if isinstance(source, SqlSource):
        return over
    if "{window}" not in source and not over:
        return False
    return bool(files_of(source, window))
