"""What the store tells about its models, made ready to be shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

from airflow_mlops.call.store import Store
from airflow_mlops.errors import MlopsError
from airflow_mlops.registry.ledger import Entry, Ledger
from airflow_mlops.registry.policy import Recorded, State
from airflow_mlops.registry.requests import Requests
from airflow_mlops.registry.verdicts import TRIGGERS, Verdicts

Tone = Literal["good", "bad", "busy", "plain"]

UNREADABLE = (MlopsError, ValueError, LookupError, TypeError, AttributeError)
"""What files lead to that cannot be reached, or that no run has written in this form."""
WINDOWS_PER_PAGE = 50
NO_WINDOW = "all"
"""The key that verdicts have without a window."""

_VERDICTS: Mapping[str, tuple[str, Tone]] = {
    "ok": ("no drift", "good"),
    "warn": ("moved, not confirmed yet", "busy"),
    "drift": ("drift", "bad"),
    "insufficient_data": ("too few rows", "plain"),
}
_OTHER_VERDICTS: Mapping[str, Mapping[str, tuple[str, Tone]]] = {
    "prediction_drift": {"ok": ("no drift of predictions", "good"), "drift": ("drift of predictions", "bad")},
    "performance": {
        "ok": ("performance holds", "good"),
        "drift": ("performance dropped", "bad"),
        "insufficient_data": ("too few labels", "plain"),
    },
}
_HELD_AGAINST: Mapping[str, tuple[str, str]] = {
    "prediction_drift": ("predictions", "the reference"),
    "performance": ("labels", "the promotion"),
}
_REQUESTS: Mapping[State, tuple[str, Tone]] = {
    "recorded": ("retrain request: recorded only", "plain"),
    "held": ("retrain request: held", "busy"),
    "suggested": ("retrain request: for a person", "busy"),
    "asking": ("retrain request: a person is asked", "busy"),
    "started": ("retrain request: waiting", "busy"),
    "claimed": ("retrain request: in training", "busy"),
    "done": ("retrain request: answered", "plain"),
    "withdrawn": ("retrain request: withdrawn", "plain"),
    "rejected": ("retrain request: refused", "bad"),
}
_PENDING: Mapping[State, str] = {
    "started": "waiting",
    "held": "held",
    "suggested": "for a person",
    "asking": "for a person",
    "claimed": "in training",
}
_DAGS = ("train", "monitor", "monitor_predictions", "monitor_performance", "predict", "retrain", "rollback")
_DECISIONS: Mapping[str, Tone] = {
    "promotion": "good",
    "approval": "good",
    "rejection": "bad",
    "withdrawal": "bad",
    "rollback": "bad",
}


class Link(NamedTuple):
    """Where more can be seen."""

    text: str
    href: str
    outside: bool = False
    """Whether it leads out of Airflow."""


class Event(NamedTuple):
    """One thing that happened to a model."""

    at: datetime
    word: str
    tone: Tone
    sentence: str
    notes: tuple[str, ...]
    links: tuple[Link, ...]


class Summary(NamedTuple):
    """How a model stands."""

    model: str
    champion: str | None
    champion_link: Link | None
    champion_card: Link | None
    """Its model card."""
    since: datetime | None
    previous: str | None
    last: Event | None
    """The last decision about its champion."""
    windows: int
    verdicts: tuple[tuple[str, Event], ...]
    """Each sensor's last verdict, and its window before it."""
    pending: str
    """The retrain requests that are not answered, in words; empty when there are none."""


class Timeline(NamedTuple):
    """What happened to a model, newest window first."""

    groups: tuple[tuple[str, tuple[Event, ...]], ...]
    """The events of each window, in the order in which they happened."""
    page: int
    pages: int


class Snapshot(Store):
    """A store that reads nothing twice: a page shows one state, and asks for each file once."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._names: dict[tuple[str, ...], list[str]] = {}
        self._read: dict[tuple[str, ...], Any] = {}

    def names(self, *parts: str) -> list[str]:
        """The names in a place, as they were when it was first looked at."""
        if parts not in self._names:
            self._names[parts] = super().names(*parts)
        return self._names[parts]

    def read_json(self, *parts: str) -> Any | None:
        """The JSON in a named place, as it was when it was first read."""
        if parts not in self._read:
            self._read[parts] = super().read_json(*parts)
        return self._read[parts]

    def models(self) -> list[str]:
        """The models that the store knows of."""
        return sorted({name for place in ("ledger", "verdicts", "requests") for name in self.names(place)})


class History:
    """What happened to one model, and how it stands.

    Args:
        store: the store.
        model: a name that `Snapshot.models` gives.
        airflow: the path that Airflow's own pages start with.
        mlflow: the address of MLflow's pages, for a model whose verdicts do not name it.
    """

    def __init__(self, store: Snapshot, model: str, *, airflow: str = "", mlflow: str | None = None) -> None:
        self.store, self.model, self.airflow = store, model, airflow
        self.ledger, self.verdicts = Ledger(store, model), Verdicts(store, model)
        self.requests, self._connection = Requests(store, model), mlflow

    def dags(self) -> frozenset[str]:
        """The DAGs of the pipeline of this name, and those that have written about the model, if that can be read."""
        own = {self.model, *(f"{self.model}.{what}" for what in _DAGS)}
        try:
            wrote = [entry.run for entry in self.ledger.entries()] + [
                str(v.get("run") or "") for _, v in self._newest()
            ]
        except UNREADABLE:
            wrote = []
        return frozenset(own | {run.partition("/")[0] for run in wrote if "/" in run})

    def summary(self) -> Summary:
        """How the model stands."""
        entries, promotion = self.ledger.entries(), self.ledger.promotion()
        champion = self.ledger.champion()
        return Summary(
            model=self.model,
            champion=champion,
            champion_link=self._version(champion) if champion else None,
            champion_card=_outside("Model card", promotion.card) if promotion else None,
            since=promotion.at if promotion else None,
            previous=self.ledger.previous(),
            last=self._decided(entries[-1]) if entries else None,
            windows=len(self.verdicts.windows()),
            verdicts=tuple((_spoken(key), self._judged(verdict)) for key, verdict in self._newest()),
            pending=_pending(self.requests.all()),
        )

    def timeline(self, page: int = 1) -> Timeline:
        """What happened, by windows; the newest ones are on page 1."""
        groups: dict[str, list[Event]] = defaultdict(list)
        for entry in self.ledger.entries():
            groups[entry.window or NO_WINDOW].append(self._decided(entry))
        for recorded in self.requests.all():
            window = recorded.request.window
            groups[window.key if window else NO_WINDOW].append(self._asked(recorded))
        keys = sorted({*groups, *self.verdicts.windows()}, reverse=True)
        pages = max(1, -(-len(keys) // WINDOWS_PER_PAGE))
        page = min(max(page, 1), pages)
        shown = keys[(page - 1) * WINDOWS_PER_PAGE : page * WINDOWS_PER_PAGE]
        for key in shown:
            groups[key] += [self._judged(verdict) for verdict in self.verdicts.of_window(key)]
        found = ((key, sorted(groups[key], key=lambda event: event.at)) for key in shown)
        return Timeline(tuple((_spoken(key), tuple(events)) for key, events in found), page, pages)

    def _newest(self) -> list[tuple[str, dict[str, Any]]]:
        """Each sensor's newest window, and its last verdict on it."""
        every = (Verdicts(self.store, self.model, sensor) for sensor in TRIGGERS)
        return [found for verdicts in every for found in verdicts.newest(1).items()]

    def _judged(self, verdict: Mapping[str, Any]) -> Event:
        status = str(verdict.get("status"))
        sensor = str(verdict.get("sensor"))
        word, tone = {**_VERDICTS, **_OTHER_VERDICTS.get(sensor, {})}.get(status, (status, "plain"))
        rows, champion = verdict.get("rows"), verdict.get("champion")
        what, held = _HELD_AGAINST.get(sensor, ("rows", "the reference"))
        counted = f"{rows:,} {what}" if isinstance(rows, int) else what
        against = f" against {held} of champion {champion}" if champion else ""
        moved = [column for column in verdict.get("columns") or () if column.get("word") == "moved"]
        return Event(
            at=_moment(verdict.get("at")),
            word=word,
            tone=tone,
            sentence=f"{counted}{against}",
            notes=tuple(str(column.get("note")) for column in moved) or tuple(map(str, verdict.get("reasons") or ())),
            links=_links(
                _outside("Drift report", verdict.get("report_url")),
                _outside("MLflow run", verdict.get("mlflow_url")),
                self._run(verdict.get("run")),
            ),
        )

    def _asked(self, recorded: Recorded) -> Event:
        word, tone = _REQUESTS[recorded.state]
        tries = f", taken {recorded.attempts} times" if recorded.attempts > 1 else ""
        notes = (f"request {recorded.request.id}{tries}", *(step.told for step in recorded.steps if step.why))
        return Event(
            at=recorded.steps[0].at,
            word=word,
            tone=tone,
            sentence=recorded.request.reason,
            notes=notes,
            links=_links(_outside("Evidence", recorded.request.evidence), self._run(recorded.last.run)),
        )

    def _decided(self, entry: Entry) -> Event:
        answers = (f"answers request {', '.join(entry.requests)}",) if entry.requests else ()
        return Event(
            at=entry.at,
            word=entry.kind,
            tone=_DECISIONS.get(entry.kind, "plain"),
            # The arrow stands between spaces that do not break.
            sentence=entry.told.replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}"),
            notes=(*entry.reasons, *answers),
            links=_links(self._version(entry.version), _outside("Model card", entry.card), self._run(entry.run)),
        )

    def _version(self, version: str) -> Link | None:
        base = self._mlflow()
        if base is None:
            return None
        address = f"{base}/#/models/{quote(self.model, safe='')}/versions/{quote(version, safe='')}"
        return _outside(f"Version {version}", address)

    def _run(self, run: object) -> Link | None:
        dag_id, _, rest = str(run or "").partition("/")
        run_id = rest.partition("/")[0]
        if not run_id:
            return None
        return Link("Airflow run", f"{self.airflow}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}")

    def _mlflow(self) -> str | None:
        """Where MLflow's pages are, as the newest verdict has it, or else the connection."""
        for _, verdict in self._newest():
            base, found, _ = str(verdict.get("mlflow_url") or "").partition("/#/")
            if found:
                return base
        return self._connection


def _pending(recorded: Iterable[Recorded]) -> str:
    counts = Counter(_PENDING[each.state] for each in recorded if each.state in _PENDING)
    return ", ".join(f"{counts[word]} {word}" for word in dict.fromkeys(_PENDING.values()) if counts[word])


def _spoken(window: str) -> str:
    return "no window" if window == NO_WINDOW else window


def _moment(text: object) -> datetime:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _outside(text: str, address: object) -> Link | None:
    """A link out of Airflow; none for what a browser would not open as a page, such as ``javascript:``."""
    try:
        parts = urlsplit(str(address or ""))
    except ValueError:
        return None
    safe = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
    return Link(text, str(address), outside=True) if safe else None


def _links(*links: Link | None) -> tuple[Link, ...]:
    return tuple(link for link in links if link is not None)
