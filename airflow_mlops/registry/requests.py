"""Retrain requests: wishes with a reason, claimed by exactly one run, and free again when that run fails.

The store is the truth and an asset event only the bell: a run looks here for what is pending, so an event that comes
late, twice or not at all loses nothing and trains nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import digest_of
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.log import AppendLog
from airflow_mlops.spec.window import Window

State = Literal["requested", "claimed", "done"]
MAX_ATTEMPTS = 3
"""A request taken this often in vain rings no more by itself; a scheduled or manual run still takes it."""


class Request(BaseModel):
    """A wish to retrain a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """The registered model."""
    champion: str | None
    """The champion that the reason is about."""
    reason: str
    """Why, in plain words."""
    trigger: str
    """What kind of reason: ``drift``, ``skew`` or ``model``."""
    window: Window | None = None
    """The window that training should end with."""
    evidence: str | None = None
    """Where to look: the link or URI of the verdict."""

    @property
    def id(self) -> str:
        """The same for the same wish, whoever asks and however often."""
        return digest_of([self.model, self.champion, self.trigger, self.window.key if self.window else None])[7:27]


class Recorded(NamedTuple):
    """A request and where it stands."""

    request: Request
    state: State
    run: str | None
    attempts: int
    entries: int


class Requests:
    """The requests of one model."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, model

    def _log(self, request_id: str) -> AppendLog:
        return AppendLog(self.store, "requests", self.model, request_id)

    def open(self, request: Request) -> bool:
        """Record a request; say whether it is new."""
        return self._log(request.id).append(1, _event("requested", request=request.model_dump(mode="json")))

    def find(self, request_id: str) -> Recorded | None:
        """A request by its id, or None."""
        entries = self._log(request_id).entries()
        if not entries:
            return None
        last = entries[-1]
        return Recorded(
            request=Request.model_validate(entries[0]["request"]),
            state=last["state"],
            run=last.get("run"),
            attempts=sum(entry["state"] == "claimed" for entry in entries),
            entries=len(entries),
        )

    def all(self) -> list[Recorded]:
        """Every request, in the order of their ids."""
        found = (self.find(name) for name in self.store.names("requests", self.model))
        return [recorded for recorded in found if recorded is not None]

    def unanswered(self, is_active: Callable[[str], bool]) -> list[Request]:
        """Requests that no run that still goes on has taken, and that may still ring."""
        return [
            recorded.request
            for recorded in self.all()
            if recorded.state != "done"
            and recorded.attempts < MAX_ATTEMPTS
            and not (recorded.state == "claimed" and recorded.run is not None and is_active(recorded.run))
        ]

    def claim(self, run: str, is_active: Callable[[str], bool], until: Window | None = None) -> list[Request]:
        """Take every request that is free for a run, and find again those it has taken already.

        Args:
            run: the run that claims. Asking again gives the same requests.
            is_active: whether another run still goes on; the claim of a run that ended without a word is free.
            until: the newest window that the run can answer for. Default: any.
        """
        return [
            recorded.request
            for recorded in self.all()
            if not (until and recorded.request.window and recorded.request.window.end > until.end)
            and self._claim(recorded, run, is_active)
        ]

    def _claim(self, recorded: Recorded, run: str, is_active: Callable[[str], bool]) -> bool:
        current: Recorded | None = recorded
        while current is not None and current.state != "done":
            if current.state == "claimed":
                if current.run == run:
                    return True
                if current.run is not None and is_active(current.run):
                    return False
            if self._log(current.request.id).append(current.entries + 1, _event("claimed", run=run)):
                return True
            current = self.find(current.request.id)
        # A cleared task of a run that had finished reads its own claims again.
        return current is not None and current.run == run

    def claimed_by(self, run: str) -> list[str]:
        """The ids of the requests that a run has taken."""
        return [recorded.request.id for recorded in self.all() if recorded.run == run]

    def settle(self, run: str, note: str) -> list[str]:
        """Close the requests that a run has claimed; return their ids."""
        settled = []
        for recorded in self.all():
            if recorded.run == run and recorded.state == "claimed":
                event = _event("done", run=run, note=note)
                if self._log(recorded.request.id).append(recorded.entries + 1, event):
                    settled.append(recorded.request.id)
        return settled


def _event(state: State, **details: Any) -> dict[str, Any]:
    return {"state": state, "at": datetime.now(UTC).isoformat(), **details}


def cooling_until(entries: list[Entry], cooldown: timedelta) -> datetime | None:
    """Until when the last promotion or rejection keeps drift from asking again; None when it does not."""
    if not entries or not cooldown:
        return None
    until = entries[-1].at + cooldown
    return until if until > datetime.now(UTC) else None
