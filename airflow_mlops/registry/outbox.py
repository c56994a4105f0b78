"""What is told to others: every entry of the ledger and every new retrain request, in their order, each at least once.

The logs themselves are the queue. How far they were told stands in a file beside them, which moves only after the
messages have gone; so what could not be told now is told by whoever comes next, and a promotion waits for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from airflow_mlops.call.store import Store

ORIGIN = "airflow-mlops"
"""The attribute ``source`` of what is told, by which it is known again and starts nothing here."""
_AT_ONCE = 100


class Told(NamedTuple):
    """A message."""

    body: dict[str, Any]
    """What has happened, as JSON values."""
    attributes: dict[str, str]
    """``id``, by which the same message is known when it comes twice; ``event``, ``model``, and ``source``."""


class Outbox:
    """What is to be told of one model.

    Args:
        store: where its ledger and its requests are.
        model: its name.
    """

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, model
        self._file = ("outbox", f"{model}.json")

    def send(self, publish: Callable[[Sequence[Told]], None]) -> int:
        """Tell what was not told yet; return how many messages that was.

        Args:
            publish: sends some messages. When it raises, they are not taken as told.
        """
        position: dict[str, int] = self.store.read_json(*self._file) or {}
        waiting: list[Told] = []
        reached = dict(position)
        for log, tell in (("requests", self._request), ("ledger", self._entry)):
            number = position.get(log, 0)
            while (entry := self.store.read_json(log, self.model, f"{number + 1:08d}.json")) is not None:
                number += 1
                if told := tell(number, entry):
                    waiting.append(told)
            reached[log] = number
        waiting.sort(key=lambda told: str(told.body["at"]))
        for start in range(0, len(waiting), _AT_ONCE):
            publish(waiting[start : start + _AT_ONCE])
        if reached != position:
            with self.store.scratch(".json") as file:
                file.write_text(json.dumps(reached), encoding="utf-8")
                self.store.replace_file(file, *self._file)
        return len(waiting)

    def _entry(self, number: int, entry: Mapping[str, Any]) -> Told:
        names = ("version", "champion_before", "champion_after", "reasons", "requests", "run", "window", "at")
        return self._told("ledger", number, entry["kind"], {name: entry.get(name) for name in names})

    def _request(self, number: int, entry: Mapping[str, Any]) -> Told | None:
        """A request when it is new; what becomes of it is the ledger's to tell."""
        request = entry.get("request")
        if not request:
            return None
        window = request["window"][2] if request.get("window") else None
        said = {"request": entry["id"], "trigger": request["trigger"], "reason": request["reason"], "window": window}
        stands = {name: entry.get(name) for name in ("state", "why", "at")}
        return self._told("requests", number, "retrain_request", {**said, **stands})

    def _told(self, log: str, number: int, event: str, body: Mapping[str, Any]) -> Told:
        said = {"pipeline": self.model, "event": event, "entry": number, **body}
        attributes = {"id": f"{self.model}/{log}/{number}", "event": event, "model": self.model, "source": ORIGIN}
        return Told(said, attributes)
