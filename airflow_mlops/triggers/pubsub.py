"""Listens to a subscription of Pub/Sub for the pipelines that name it.

A triggerer runs one loop a subscription, however many pipelines, files and DAGs name it (Airflow's shared stream). What
it pulls is kept in the store before it is acknowledged; each pipeline's trigger then looks for what is meant for it.
So a message outlives the triggerer at any point: before it is kept Pub/Sub has it, and brings it again; after that the
store has it, and a trigger that starts finds it there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_mlops.call.store import Store
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.hooks.pubsub import Subscription
from airflow_mlops.registry.messages import Inbox, Listener, meant

log = logging.getLogger(__name__)

SWEEP = 3600.0
"""Seconds between two looks at everything: for what other triggerers have kept, and bells that led to nothing."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_FEW = 100
"""How many entries that are nobody's a pipeline may lie behind, and read again when it starts."""

_inboxes: dict[tuple[str, str], Inbox] = {}


def _inbox(root: str, subscription: str) -> Inbox:
    """The process's one reader of an inbox: its entries are read once, however many pipelines look at them."""
    key = (root, subscription)
    return _inboxes.get(key) or _inboxes.setdefault(key, Inbox(Store(root), subscription))


class PubsubTrigger(BaseEventTrigger):
    """Fires when a subscription has brought messages for a pipeline that it has not asked about yet.

    The event names the subscription and the newest entry of its inbox; the messages are in the store.

    :param subscription: ``projects/P/subscriptions/S``.
    :param model: the pipeline.
    :param grain: what its windows step by; None where its data comes in none.
    :param source: where its rows come from, where these are files.
    :param connection: the Airflow connection of type ``google_cloud_platform``.
    :param store: the root of the store that keeps messages. Default: the triggerer's ``[airflow_mlops] store``.
    """

    def __init__(
        self,
        subscription: str,
        model: str,
        grain: str | None = None,
        source: str | None = None,
        connection: str = "google_cloud_default",
        store: str | None = None,
    ) -> None:
        super().__init__()
        self.subscription, self.model, self.grain, self.source = subscription, model, grain, source
        self.connection, self.store = connection, store

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The trigger as Airflow stores it."""
        names = ("subscription", "model", "grain", "source", "connection", "store")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    def shared_stream_key(self) -> Hashable:
        """What triggers of one loop have in common."""
        return (type(self).__qualname__, self.subscription, self.connection, self.store)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[bool]:
        """Pull, keep and acknowledge, for ever; tell when there is something new.

        Yields:
            False when there are new entries; True when everything is to be looked at once more.
        """
        inbox = _inbox(await asyncio.to_thread(store_root, kwargs.get("store")), kwargs["subscription"])
        subscription = Subscription(kwargs["subscription"], kwargs["connection"])
        clock = asyncio.get_running_loop().time
        newest, swept, pause, troubled = 0, clock(), _FIRST_PAUSE, True
        while True:
            began = clock()
            try:
                if began - swept > SWEEP:
                    await asyncio.to_thread(inbox.load)
                    await asyncio.to_thread(inbox.prune, datetime.now(UTC))
                    swept = began
                    yield True
                received = await subscription.pull()
                if received:
                    await asyncio.to_thread(inbox.put, [message for _, message in received])
                    await subscription.acknowledge([ack for ack, _ in received])
                elif clock() - began < _FIRST_PAUSE:
                    await asyncio.sleep(_FIRST_PAUSE)  # a server that does not wait
                found = await asyncio.to_thread(inbox.follow)
                if troubled:
                    await asyncio.to_thread(inbox.tell_trouble, None)
                pause, troubled = _FIRST_PAUSE, False
            except MlopsError as error:
                # Whatever it is, the loop goes on: a person may mend it, and what is not acknowledged comes again.
                log.warning("nothing is received now: %s", error)
                if not error.retryable:
                    troubled = await _tell(inbox, str(error))
                # What was kept before it failed is told all the same.
                found = max((number for number, _ in inbox.known(newest)), default=newest)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            if found > newest:
                newest = found
                yield False

    async def filter_shared_stream(self, shared_stream: AsyncIterator[bool]) -> AsyncIterator[TriggerEvent]:
        """Fire for what is meant for this pipeline."""
        inbox = _inbox(await asyncio.to_thread(store_root, self.store), self.subscription)
        listener = Listener(model=self.model, grain=self.grain, source=self.source)
        seen = written = 0
        anew = True
        async for everything in _at_once(shared_stream):
            try:
                if anew or everything:
                    await asyncio.to_thread(inbox.load)
                    seen = written = await asyncio.to_thread(inbox.position, self.model)
                    await asyncio.to_thread(inbox.advance, listener, seen)
                    anew = False
                new = inbox.known(seen)
                seen = max((number for number, _ in new), default=seen)
                mine = [message.id for _, message in new if meant(message, listener)]
                if mine:
                    written = seen
                    yield TriggerEvent({"subscription": self.subscription, "entry": seen, "messages": len(mine)})
                elif seen - written >= _FEW and await asyncio.to_thread(inbox.position, self.model) >= written:
                    await asyncio.to_thread(inbox.advance, listener, seen)
                    written = seen
            except MlopsError as error:
                self.log.warning("the messages for %s cannot be looked at now: %s", self.model, error)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Listen alone, where no triggerer shares the loop."""
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event


async def _at_once(shared_stream: AsyncIterator[bool]) -> AsyncIterator[bool]:
    """The stream, with a first look before anything has come."""
    yield False
    async for everything in shared_stream:
        yield everything


async def _tell(inbox: Inbox, what: str) -> bool:
    """Leave word of a trouble where `airflow-mlops messages` finds it."""
    try:
        await asyncio.to_thread(inbox.tell_trouble, what)
    except MlopsError as error:
        log.warning("%s", error)
    return True
