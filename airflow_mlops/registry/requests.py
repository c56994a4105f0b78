"""Retrain requests: every wish with its reason, what the policy made of it, and what came out; one log a model.

The store is the truth and an asset event only the bell: a run looks here for what is pending, so an event that comes
late, twice or not at all loses nothing and trains nothing twice. Every change is one entry of the model's log, written
under the number that follows what was read; who comes second reads again and decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.log import AppendLog
from airflow_mlops.registry.policy import (
    MAX_ATTEMPTS,
    OPEN,
    Decision,
    IsActive,
    Recorded,
    Request,
    Standing,
    State,
    decide,
    fold,
    review,
)
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.window import Window, window_of_key

__all__ = ["MAX_ATTEMPTS", "Recorded", "Request", "Requests", "State"]


def _now() -> datetime:
    return datetime.now(UTC)


class Requests:
    """The requests of one model."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, model
        self._log = AppendLog(store, "requests", model)

    def _read(self) -> tuple[int, dict[str, Recorded]]:
        entries = self._log.entries()
        return len(entries), fold(entries)

    def _append(self, length: int, request: Request, new: bool, state: State, **details: Any) -> bool:
        """Write what happens to a request, unless the log has become longer; say whether it was written."""
        given = {key: value for key, value in details.items() if value is not None}
        asked = {"request": request.model_dump(mode="json")} if new else {}
        return self._log.append(
            length + 1, {"id": request.id, "state": state, "at": _now().isoformat(), **given, **asked}
        )

    def _decided(self, length: int, request: Request, new: bool, decision: Decision) -> bool:
        until = decision.until.isoformat() if decision.until else None
        return self._append(length, request, new, decision.state, why=decision.why, until=until)

    def all(self) -> list[Recorded]:
        """Every request, in the order in which they were first asked."""
        return list(self._read()[1].values())

    def find(self, request_id: str) -> Recorded | None:
        """A request by its id, or None."""
        return self._read()[1].get(request_id)

    def standing(self, *wishes: Request) -> Standing:
        """What the policy has to know besides the requests: the ledger's last word, and the windows that are quiet.

        Args:
            wishes: requests that are to be asked; no verdict is read that is older than they and those that wait.
        """
        ledger = Ledger(self.store, self.model)
        decided = ledger.decided()
        waiting = [each.request for each in self.all() if each.state in OPEN or each.state == "claimed"]
        earliest = min((each.window.end for each in (*waiting, *wishes) if each.window), default=None)
        verdicts, quiet = Verdicts(self.store, self.model), dict[str, Window]()
        for key in reversed(verdicts.windows() if earliest else []):
            if key == "all":
                continue
            window = window_of_key(key)
            if earliest and window.end < earliest:
                break
            # A window may be judged again: its last word counts.
            last = {str(verdict.get("trigger", "drift")): verdict["status"] for verdict in verdicts.of_window(key)}
            quiet |= {trigger: window for trigger, status in last.items() if status == "ok" and trigger not in quiet}
        return Standing(
            champion=ledger.champion(),
            decided=decided.at if decided else None,
            quiet=quiet,
        )

    def ask(self, request: Request, policy: Retrain, standing: Standing) -> Recorded:
        """Record a request with what the policy makes of it.

        The same request is decided once, however often it is asked.

        Args:
            request: the request.
            policy: the declared policy.
            standing: what the policy has to know besides the requests.
        """
        while True:
            length, found = self._read()
            if request.id in found:
                return found[request.id]
            decision = decide(policy, list(found.values()), standing, request, _now())
            self._decided(length, request, True, decision)

    def open(self, request: Request) -> bool:
        """Record a request that may start at once, whatever the policy; say whether it is new."""
        while True:
            length, found = self._read()
            if request.id in found:
                return False
            if self._append(length, request, True, "started"):
                return True

    def review(self, policy: Retrain, standing: Standing, is_active: IsActive) -> list[Recorded]:
        """Look again at what waits.

        The limits may have passed, a run may have ended without a word, or the reason may be none any more. The newest
        window comes first, for a training for it answers for the others.

        Returns:
            The requests whose bell is to be rung: ``started`` ones that no run has taken, and ``suggested`` ones that
            were put to nobody yet.
        """
        while True:
            length, found = self._read()
            due = review(policy, list(found.values()), standing, _now(), is_active)
            if due is None:
                return [each for each in found.values() if each.state in ("started", "suggested")]
            self._decided(length, due[0].request, False, due[1])

    def put(self, run: str, is_active: IsActive) -> list[Recorded]:
        """Take the requests that a person is to be asked about, for the run that asks; none where another one asks.

        Asking again gives the same requests, whatever has become of them.
        """
        while True:
            length, found = self._read()
            mine = [each for each in found.values() if each.had("asking", run)]
            free = [
                each
                for each in found.values()
                if each.state == "suggested"
                or (each.state == "asking" and each.last.run != run and not is_active(str(each.last.run)))
            ]
            if mine or not free:
                return mine
            self._append(length, free[0].request, False, "asking", run=run)

    def answer(self, run: str, approved: bool, by: str | None, why: str) -> list[Recorded]:
        """Write down what a person has said to the run that asked.

        Returns:
            The requests that it was about and that still waited for it, as they stand now.
        """
        return self._each(
            lambda each: each.state == "asking" and each.last.run == run,
            "started" if approved else "rejected",
            by=by,
            why=why,
        )

    def claim(self, run: str, is_active: IsActive, until: Window | None = None, *, rung: bool = False) -> list[Request]:
        """Take every request that is free for a run, and find again those it has taken already.

        Args:
            run: the run that claims. Asking again gives the same requests.
            is_active: whether another run still goes on; the claim of a run that ended without a word is free.
            until: the newest window that the run can answer for. Default: any.
            rung: whether an event has started the run. Then it takes what waits only if there is a request among it
                that may start, or that was the run's own: an event that comes twice must not start what is held.
        """
        while True:
            length, found = self._read()
            fitting = [
                each
                for each in found.values()
                if not (until and each.request.window and each.request.window.end > until.end)
            ]
            # A cleared task of a run that had finished reads its own claims again.
            mine = [each for each in fitting if each.run == run and each.state in ("claimed", "done")]
            free = [each for each in fitting if each not in mine and _free(each, is_active)]
            if rung and not mine and not any(each.state == "started" or each.had("claimed", run) for each in free):
                free = []
            if not free:
                return [each.request for each in mine]
            self._append(length, free[0].request, False, "claimed", run=run)

    def take(self, request: Request, run: str) -> None:
        """Record a request that the run which finds the reason answers itself, or claim it if it is free."""
        while True:
            length, found = self._read()
            known = found.get(request.id)
            if known and known.state not in OPEN:
                return
            if self._append(length, request, known is None, "claimed", run=run):
                return

    def claimed_by(self, run: str) -> list[str]:
        """The ids of the requests that a run has taken."""
        return [recorded.request.id for recorded in self.all() if recorded.run == run]

    def settle(self, run: str, note: str) -> list[str]:
        """Close the requests that a run has claimed; return their ids."""
        # Also one that was given back, when tasks of its run were cleared and nobody else has taken it since.
        closed = ("recorded", "rejected", "done")
        settled = self._each(lambda each: each.run == run and each.state not in closed, "done", run=run, why=note)
        return [each.request.id for each in settled]

    def _each(self, chosen: Callable[[Recorded], bool], state: State, **details: Any) -> list[Recorded]:
        """Let the same happen to every request of a kind; return those it has happened to, as they stand then."""
        done: list[str] = []
        while True:
            length, found = self._read()
            following = next((each for each in found.values() if chosen(each)), None)
            if following is None:
                return [found[each] for each in done]
            if self._append(length, following.request, False, state, **details):
                done.append(following.request.id)


def _free(recorded: Recorded, is_active: IsActive) -> bool:
    """Whether a run may take a request."""
    ended = recorded.state == "claimed" and recorded.run is not None and not is_active(recorded.run)
    return recorded.state in OPEN or ended
