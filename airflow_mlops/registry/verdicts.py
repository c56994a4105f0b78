"""Monitoring verdicts by window, and which window comes next. File names and small JSON only; no data is read.

verdicts/PIPELINE/WINDOW/CALL.json            what was said of a window's data
prediction_verdicts/PIPELINE/WINDOW/CALL.json of its predictions
performance_verdicts/PIPELINE/WINDOW/CALL.json of its predictions, by labels that came later
open_verdicts/PIPELINE/WINDOW/CALL.json       the same, where more labels are waited for
monitored/PIPELINE/RUN.json                   the window that a run has taken, for its retries and after a clearing
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from airflow_mlops.call.source import files_of, stamp_of, windows_of, written_at
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Status, Wire, digest_of
from airflow_mlops.errors import MlopsError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.spec.source import SqlSource
from airflow_mlops.spec.window import Grain, Window, parse_key, shift

Sensor = Literal["data_drift", "prediction_drift", "performance"]
SENSORS: dict[str, Sensor] = {
    "monitor": "data_drift",
    "monitor_predictions": "prediction_drift",
    "monitor_performance": "performance",
}
"""What a stage watches."""
TRIGGERS: dict[Sensor, str] = {
    "data_drift": "drift",
    "prediction_drift": "prediction_drift",
    "performance": "performance",
}
"""By which word each asks for a retraining. Predictions have one of their own: a quiet window of predictions says
nothing against a drift of the data, and a team may listen to one of the two."""
_PLACES: dict[Sensor, str] = {
    "data_drift": "verdicts",
    "prediction_drift": "prediction_verdicts",
    "performance": "performance_verdicts",
}
_OPEN = "open_verdicts"
SERVED = "served-"
"""What the names of prediction files begin with that a server writes, beside those of batch prediction."""
_LOOK_AGAIN = timedelta(days=1)
"""How long after a look a database may be asked whether more labels have come: only a query could tell."""
NO_WINDOW = "all"
"""The key of data that comes in no windows."""


class Measured(Wire):
    """A metric by labels, against its value at promotion."""

    metric: str
    """Its name."""
    value: float | None = None
    """Its value now."""
    interval: tuple[float, float] | None = None
    """The interval of that."""
    promoted: float | None = None
    """Its value on the held-out rows, at promotion."""
    promoted_interval: tuple[float, float] | None = None
    """The interval of that."""
    loss: float | None = None
    """How much worse it is now, whichever way is better."""
    loss_interval: tuple[float, float] | None = None
    """The interval of that."""
    limit: float | None = None
    """The loss above which the whole interval must lie."""
    labels: int = 0
    """How many predictions have a label that counts."""
    predictions: int = 0
    """How many predictions there are."""


class MonitoringVerdict(Wire):
    """What a sensor says of a window: one form for all of them."""

    version: Literal[1] = 1
    """The version of this form."""
    sensor: Sensor
    """Who says it."""
    trigger: str
    """By which word a retraining is asked for."""
    run: str
    """The run that judged."""
    window: str
    """The window's key."""
    at: datetime
    """When it was judged."""
    status: Status
    """``ok``, ``warn``, ``drift``, ``insufficient_data``, or ``error`` where it could not be judged."""
    reasons: tuple[str, ...] = ()
    """Why, in words."""
    rows: int = 0
    """How many rows were judged."""
    champion: str | None = None
    """The version that was judged, or against whose reference."""
    data: str | None = None
    """The digest of the data judged."""
    moved: tuple[str, ...] = ()
    """The columns that moved."""
    columns: tuple[dict[str, Any], ...] = ()
    """A word for every column."""
    alarm: bool = False
    """Whether this window by itself alarms."""
    threshold: float | None = None
    """The z above which a column is beyond chance."""
    null: str = ""
    """What chance was taken to be."""
    performance: Measured | None = None
    """Of performance, what was measured."""
    labels: str | None = None
    """Of performance, which state of the labels was read; None where their source does not tell it."""
    waits: bool = False
    """Whether the window is looked at again when more labels have come."""
    mlflow_url: str | None = None
    """The MLflow run of the verdict."""
    report_url: str | None = None
    """The report, where there was an alarm."""


class Verdicts:
    """The verdicts of one pipeline's monitoring: of one sensor, or of all of them."""

    def __init__(self, store: Store, pipeline: str, sensor: Sensor | None = None) -> None:
        self.store, self.pipeline, self.sensor = store, pipeline, sensor

    def record(self, call: Call, said: Mapping[str, Any]) -> MonitoringVerdict:
        """Keep the verdict of a Call; a retry of the same run finds it there and changes nothing."""
        verdict = self._of(call, said)
        place = _OPEN if verdict.waits else _PLACES[verdict.sensor]
        # More labels may have come before the same run looks again.
        name = f"{call.identity}-{digest_of(verdict.labels)[7:15]}.json" if verdict.waits else f"{call.identity}.json"
        self.store.create_json(verdict.model_dump(mode="json"), place, self.pipeline, verdict.window, name)
        return verdict

    def record_failure(self, call: Call, reason: str) -> None:
        """Write down that a window could not be judged; a later verdict of the same run stands beside it."""
        verdict = self._of(call, {"status": "error", "reasons": (reason,)})
        place = _PLACES[verdict.sensor], self.pipeline, verdict.window, f"{call.identity}.failed.json"
        self.store.create_json(verdict.model_dump(mode="json"), *place)

    def _of(self, call: Call, said: Mapping[str, Any]) -> MonitoringVerdict:
        sensor = SENSORS[call.stage]
        window = call.window.key if call.window else NO_WINDOW
        return MonitoringVerdict.model_validate(
            {
                **said,
                "sensor": sensor,
                "trigger": TRIGGERS[sensor],
                "run": call.run,
                "window": window,
                "at": datetime.now(UTC),
            }
        )

    def windows(self) -> list[str]:
        """The keys of the windows judged, sorted; those that wait for labels only where all sensors are looked at."""
        return sorted({key for place in self._places() for key in self.store.names(place, self.pipeline)})

    def waiting(self) -> list[str]:
        """The keys of the windows that wait for more labels, sorted."""
        judged = set(self.store.names(_PLACES["performance"], self.pipeline))
        return [key for key in self.store.names(_OPEN, self.pipeline) if key not in judged]

    def last_look(self, key: str) -> dict[str, Any] | None:
        """The newest verdict on a window that waits for labels."""
        found = self._read(_OPEN, key)
        return found[-1] if found else None

    def of_window(self, key: str) -> list[dict[str, Any]]:
        """Every verdict on a window, oldest first."""
        return _in_order(verdict for place in self._places() for verdict in self._read(place, key))

    def newest(self, most: int) -> dict[str, dict[str, Any]]:
        """The last verdict on each of a sensor's newest windows, judged or waiting for labels; oldest window first."""
        waiting = self.waiting() if self.sensor == "performance" else []
        keys = sorted({*self.windows(), *waiting})[-most:]
        found = {key: judged[-1] if (judged := self.of_window(key)) else self.last_look(key) for key in keys}
        return {key: verdict for key, verdict in found.items() if verdict}

    def all(self) -> list[dict[str, Any]]:
        """Every verdict, by window."""
        return [verdict for key in self.windows() for verdict in self.of_window(key)]

    def take(self, run: str, window: Window) -> None:
        """Let a run's retries, and itself when it is cleared, judge the window that it has taken first."""
        body = {"run": run, "sensor": self.sensor, "window": window.key}
        self.store.create_json(body, "monitored", self.pipeline, self._taken(run))

    def taken(self, run: str) -> str | None:
        """The key of the window that a run has taken, or None."""
        found = self.store.read_json("monitored", self.pipeline, self._taken(run))
        return str(found["window"]) if found else None

    def _taken(self, run: str) -> str:
        return f"{digest_of([self.sensor, run])[7:39]}.json"

    def _places(self) -> tuple[str, ...]:
        return (_PLACES[self.sensor],) if self.sensor else (*_PLACES.values(), _OPEN)

    def _read(self, place: str, key: str) -> list[dict[str, Any]]:
        names = self.store.names(place, self.pipeline, key)
        found = (self.store.read_json(place, self.pipeline, key, name) for name in names)
        return _in_order(verdict for verdict in found if verdict)


def _in_order(verdicts: Any) -> list[dict[str, Any]]:
    return sorted(verdicts, key=lambda verdict: datetime.fromisoformat(str(verdict["at"])))


def next_window(verdicts: Verdicts, ledger: Ledger, grain: Grain, run: str) -> Window | None:
    """The window that a monitoring run judges: the one after all that were judged and that the champion has seen.

    A run that has judged one already gets that one again, so that its retry does not move on. None while there is no
    champion, or where the champion's training had no window.
    """
    taken = verdicts.taken(run)
    if taken is not None:
        return parse_key(grain, taken)
    judged = verdicts.windows()
    if judged and any(verdict["run"] == run for verdict in verdicts.of_window(judged[-1])):
        return parse_key(grain, judged[-1])
    champion = ledger.promotion()
    if champion is None or champion.window is None:
        return None
    # A window that went into training is not judged: it would be compared with itself.
    newest = max((parse_key(grain, key) for key in (*judged, champion.window)), key=lambda window: window.start)
    return shift(grain, newest, 1)


def next_predicted(
    verdicts: Verdicts,
    ledger: Ledger,
    predictions: str,
    grain: Grain,
    labels: str | SqlSource | None = None,
    delay: timedelta = timedelta(0),
    quiet: timedelta = timedelta(0),
) -> Window | None:
    """The oldest window of predictions that was not judged; then, of those that wait for labels, one that got more.

    Predictions may leave windows out, or come late, so whatever is there and was not judged has its turn. The windows
    start after the champion's own training, or, for labels, which come when others may serve, the first champion's.

    Args:
        verdicts: of the sensor that asks.
        ledger: the ledger.
        predictions: where they are, with ``{window}``.
        grain: the calendar piece that windows step by.
        labels: where the labels are; None asks for none.
        delay: how long after a window's end they are complete.
        quiet: how long after its last prediction a window that was served counts as whole.
    """
    champion = ledger.promotion()
    first = champion if labels is None else next((each for each in ledger.entries() if each.kind == "promotion"), None)
    if first is None or first.window is None:
        return None
    start = parse_key(grain, first.window).start
    there = [window for window in windows_of(predictions, grain) if window.start > start]
    judged, waiting = set(verdicts.windows()), set(verdicts.waiting()) if labels is not None else set()
    for window in there:
        news = window.key not in judged and window.key not in waiting
        if news and labels_due(labels, window, delay) and is_whole(predictions, window, quiet):
            return window
    if labels is None:
        return None
    return next((each for each in there if each.key in waiting and _more(verdicts, labels, each)), None)


def is_whole(predictions: str, window: Window, quiet: timedelta) -> bool:
    """Whether no more predictions of a window are to be expected.

    A run of batch prediction writes its window whole. Served ones come as long as anybody asks: theirs is whole when it
    is over by the clock, and nothing was written for a while.
    """
    served = [file for file in files_of(predictions, window) if file.rpartition("/")[2].startswith(SERVED)]
    if not served:
        return True
    now = datetime.now(UTC)
    return now >= window.end and now.timestamp() - max(map(written_at, served)) >= quiet.total_seconds()


def labels_due(labels: str | SqlSource | None, window: Window, delay: timedelta) -> bool:
    """Whether a window's labels are complete by the clock, and their source is there; yes where none are asked for."""
    if labels is None:
        return True
    return (not delay or datetime.now(UTC) >= window.end + delay) and has_arrived(labels, window, delay)


def _more(verdicts: Verdicts, labels: str | SqlSource, window: Window) -> bool:
    last = verdicts.last_look(window.key)
    if last is None:
        return True
    if isinstance(labels, SqlSource):
        return datetime.now(UTC) >= datetime.fromisoformat(str(last["at"])) + _LOOK_AGAIN
    return stamp_of(labels, window) != str(last["labels"])


def changed_since(verdicts: Verdicts, labels: str | SqlSource, grain: Grain, most: int = 12) -> list[str]:
    """The windows, of the newest that were judged by labels, whose labels have been written again since."""
    found: list[str] = []
    if isinstance(labels, SqlSource):
        return found
    for key in verdicts.windows()[-most:]:
        last = next((each for each in reversed(verdicts.of_window(key)) if each.get("labels")), None)
        with suppress(MlopsError):  # a note is no reason to fail
            if last and stamp_of(labels, parse_key(grain, key)) not in (None, last["labels"]):
                found.append(key)
    return found


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
