"""Messages that ask for a retraining: kept where they were received, and who each of them is for.

A message is kept before it is acknowledged, so nothing that was received can be lost; and it becomes a request by its
id (see `airflow_mlops.registry.policy.Request`), so nothing that comes twice is done twice. What nobody can use is kept
as well, with the reason, and comes back no more.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_mlops.call.source import window_of_file
from airflow_mlops.call.store import Store
from airflow_mlops.errors import DataNotFoundError, StoreError
from airflow_mlops.registry.outbox import ORIGIN
from airflow_mlops.registry.policy import Request
from airflow_mlops.spec.window import Grain, Window, parse_key

KEPT = timedelta(days=31)
"""How long what was received is kept; as long as Pub/Sub itself would keep it at most."""
LARGEST = 65_536
"""The largest body, in bytes. Nothing in it is needed."""
_TEXT = 300
_AT_ONCE = 16
_PLACE = "messages"
_NAME = re.compile(r"\d{8}\.json")
_LISTENERS = "listeners"
_TROUBLE = "trouble.json"


class Message(BaseModel):
    """What is kept of a message of Pub/Sub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The id that Pub/Sub gave it; the same when it comes again."""
    published: datetime
    """When it was published."""
    models: tuple[str, ...] | None = None
    """The pipelines that it names; None where it is for all that listen."""
    window: str | None = None
    """The key of the window that it names."""
    file: str | None = None
    """Of a notification of Cloud Storage: the object that is whole now, as a URI."""
    text: str = ""
    """Its reason, in its own words."""
    problem: str | None = None
    """Why nobody can use it."""
    ignored: bool = False
    """Whether it is a notification of something else than a new object, or one of ours, which would go in circles."""


def message_of(id_: str, published: datetime, attributes: Mapping[str, str], body: bytes) -> Message:
    """What is kept of a message as it was received; what is wrong with it is said by its ``problem``.

    Args:
        id_: its id.
        published: when it was published.
        attributes: ``model=NAME`` or ``models=A,B``, ``window=KEY`` and ``reason=TEXT``; or those of a notification of
            Cloud Storage: ``eventType``, ``bucketId`` and ``objectId``.
        body: the reason, as UTF-8, where no attribute gives it.
    """
    problem = None
    models: tuple[str, ...] | None = None
    if "model" in attributes or "models" in attributes:
        named = f"{attributes.get('model', '')},{attributes.get('models', '')}".split(",")
        models = tuple(dict.fromkeys(name.strip() for name in named if name.strip()))
        if not models:
            problem = "its attribute 'model' names nobody"
    event, text = attributes.get("eventType"), attributes.get("reason", "")
    file = None
    if event is not None:
        if attributes.get("bucketId") and attributes.get("objectId"):
            file = f"gs://{attributes['bucketId']}/{attributes['objectId']}"
        else:
            problem = problem or f"a notification {event!r} without 'bucketId' and 'objectId'"
    elif len(body) > LARGEST:
        problem = problem or f"its body has {len(body):,} bytes, of {LARGEST:,} that are read"
    else:
        try:
            text = text or body.decode()
        except UnicodeDecodeError:
            problem = problem or "its body is no UTF-8 text"
    return Message(
        id=id_,
        published=published,
        models=models,
        window=attributes.get("window") or None,
        file=file,
        text=" ".join(text.split())[:_TEXT],
        problem=problem,
        ignored=event not in (None, "OBJECT_FINALIZE") or attributes.get("source") == ORIGIN,
    )


class Listener(BaseModel):
    """A pipeline that names the subscription."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Its name."""
    grain: Grain | None
    """What its windows step by; None where its data comes in none."""
    source: str | None = None
    """Where its rows come from, where these are files."""


class Meant(NamedTuple):
    """What a message asks of a pipeline."""

    window: Window | None = None
    """The window that training should end with; None: the newest."""
    problem: str | None = None
    """Why it cannot be done."""


def meant(message: Message, listener: Listener) -> Meant | None:
    """What a message asks of a pipeline; None where it is not for it."""
    if message.problem or message.ignored or (message.models is not None and listener.model not in message.models):
        return None
    if message.file is not None:
        try:
            return Meant(window_of_file(listener.source or "", message.file, listener.grain))
        except DataNotFoundError:
            return None
    if message.window is None:
        return Meant()
    if listener.grain is None:
        return Meant(problem=f"it names the window {message.window!r}, and the data of {listener.model} comes in none")
    try:
        return Meant(parse_key(listener.grain, message.window))
    except DataNotFoundError as error:
        return Meant(problem=f"for {listener.model}: {error.what}; allowed: {error.allowed}")


def request_of(message: Message, subscription: str, asked: Meant, model: str, champion: str | None) -> Request:
    """The wish to retrain that a message makes."""
    what = f"{message.file} has arrived" if message.file else message.text or "no reason is given"
    return Request(
        model=model,
        champion=champion,
        reason=f"message {message.id} of {subscription.rpartition('/')[2]}: {what}",
        trigger="pubsub",
        window=asked.window,
        message=f"{subscription}/{message.id}",
    )


class Inbox:
    """What was received from one subscription, in entries that are numbered from 1, each created once.

    Whoever receives may do so in several processes at once. An entry never changes, so each is read once.

    Args:
        store: the store.
        subscription: ``projects/P/subscriptions/S``.
    """

    def __init__(self, store: Store, subscription: str) -> None:
        _, project, _, name = subscription.split("/")
        self.store, self.subscription, self.place = store, subscription, (_PLACE, project, name)
        self._entries: dict[int, tuple[Message, ...]] = {}
        self._received: dict[int, datetime] = {}
        self._newest = 0
        # Held while the store is asked, so never where an event loop would wait for it.
        self._lock = RLock()

    def put(self, messages: Sequence[Message]) -> int:
        """Keep messages as one entry, those left out that are there already; return the newest entry's number."""
        with self._lock:
            if not self._newest:
                self.load()
            while True:
                newest = self.follow()
                known = {each.id for entry in self._entries.values() for each in entry}
                new = [each for each in messages if each.id not in known]
                if not new:
                    return newest
                value = {
                    "at": datetime.now(UTC).isoformat(),
                    "messages": [each.model_dump(mode="json") for each in new],
                }
                if self.store.create_json(value, *self.place, _name(newest + 1)):
                    self._take(newest + 1, value)
                    return newest + 1

    def load(self, after: int = 0) -> int:
        """Read the entries after one that were not read yet; return the newest one's number, or 0."""
        with self._lock:
            numbers = [int(name[:-5]) for name in self.store.names(*self.place) if _NAME.fullmatch(name)]
            if not numbers:
                return 0
            # A folder that is listed while others write may lack a name that comes before one that it has.
            wanted = range(max(after + 1, min(numbers)), max(numbers) + 1)
            unread = [number for number in wanted if number not in self._entries]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                values = pool.map(lambda number: self.store.read_json(*self.place, _name(number)), unread)
                for number, value in zip(unread, values, strict=True):
                    self._take(number, value)
            return max(numbers)

    def follow(self) -> int:
        """Read what has come after the newest entry that is known; return the newest entry's number."""
        with self._lock:
            while (value := self.store.read_json(*self.place, _name(self._newest + 1))) is not None:
                self._take(self._newest + 1, value)
            return self._newest

    def _take(self, number: int, value: Any) -> None:
        if value is None:  # removed since its name was read
            return
        try:
            self._entries[number] = tuple(Message.model_validate(each) for each in value["messages"])
            self._received[number] = datetime.fromisoformat(value["at"])
        except (ValidationError, LookupError, TypeError, ValueError) as error:
            where = self.store.uri(*self.place, _name(number))
            raise StoreError(f"{where} does not read as messages", fix="put back what it held") from error
        self._newest = max(self._newest, number)

    def known(self, after: int = 0) -> list[tuple[int, Message]]:
        """The messages after an entry, oldest first, of those that were read; nothing is looked for."""
        return [
            (number, each) for number in range(after + 1, self._newest + 1) for each in self._entries.get(number, ())
        ]

    def prune(self, now: datetime) -> int:
        """Remove what is older than `KEPT`, but never the newest entry; return how many entries went."""
        with self._lock:
            old = [number for number, at in self._received.items() if at < now - KEPT and number != self._newest]
            for number in sorted(old):
                self.store.remove(*self.place, _name(number))
                del self._entries[number], self._received[number]
            return len(old)

    def position(self, model: str) -> int:
        """The entry up to which a pipeline has asked for all that was meant for it."""
        return int((self.store.read_json(*self.place, _LISTENERS, f"{model}.json") or {}).get("position", 0))

    def advance(self, listener: Listener, position: int) -> None:
        """Write down who listens, and up to which entry it has asked. A lower position only has it ask again."""
        value = {**listener.model_dump(mode="json"), "position": position, "at": datetime.now(UTC).isoformat()}
        with self.store.scratch(".json") as file:
            file.write_text(json.dumps(value, indent=1), encoding="utf-8")
            self.store.replace_file(file, *self.place, _LISTENERS, f"{listener.model}.json")

    def listeners(self) -> list[Listener]:
        """The pipelines that have listened."""
        found = (
            self.store.read_json(*self.place, _LISTENERS, name) for name in self.store.names(*self.place, _LISTENERS)
        )
        return [Listener(model=each["model"], grain=each["grain"], source=each["source"]) for each in found if each]

    def trouble(self) -> dict[str, Any] | None:
        """Why nothing is received: ``at`` and ``what``; None where all is well."""
        found: dict[str, Any] | None = self.store.read_json(*self.place, _TROUBLE)
        return found

    def tell_trouble(self, what: str | None) -> None:
        """Write down why nothing is received, or, with None, that all is well."""
        if what is None:
            self.store.remove(*self.place, _TROUBLE)
            return
        with self.store.scratch(".json") as file:
            file.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), "what": what}), encoding="utf-8")
            self.store.replace_file(file, *self.place, _TROUBLE)


def subscriptions_in(store: Store) -> list[str]:
    """The subscriptions that a store knows."""
    return [
        f"projects/{project}/subscriptions/{name}"
        for project in store.names(_PLACE)
        for name in store.names(_PLACE, project)
    ]


class Stand(NamedTuple):
    """What became of a message."""

    message: Message
    models: tuple[str, ...]
    """Who it is for, of those that listen."""
    problem: str | None
    """Why it, or a part of it, is set aside."""


def stands(messages: Sequence[Message], listeners: Sequence[Listener]) -> Iterator[Stand]:
    """Say of each message who it is for, or why it is set aside. A file that is nobody's is neither."""
    names = [each.model for each in listeners]
    for message in messages:
        asked = {each.model: found for each in listeners if (found := meant(message, each))}
        problems = [message.problem] if message.problem else []
        problems += [each.problem for each in asked.values() if each.problem]
        for name in (message.models or ()) if not message.problem else ():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; try: {close[0]}" if close else ""
                listed = ", ".join(sorted(names)) or "nobody"
                problems.append(f"no pipeline {name!r} listens here; allowed: {listed}{hint}")
        models = tuple(name for name, each in asked.items() if not each.problem)
        yield Stand(message, models, "; ".join(problems) or None)


def _name(number: int) -> str:
    return f"{number:08d}.json"
