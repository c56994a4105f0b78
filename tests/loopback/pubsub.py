"""Pub/Sub on loopback: what Google's clients ask of it, over real gRPC, by Google's own protos.

Google's emulator is a Java program that comes in no package. This one keeps topics, subscriptions, leases with their
deadlines, redelivery and dead letters; permissions, quotas and order are Google's own affair.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from tests.loopback.gcs import PROJECT

_WAITS = 3.0


class _Refused(Exception):
    def __init__(self, code: Any, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


class Lease(NamedTuple):
    """A message that somebody has, until then."""

    message: Any
    deliveries: int
    until: float


class PubSub:
    """A server; its state is looked at, and faults are put in, from the test."""

    def __init__(self) -> None:
        import grpc

        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        self._faults: list[tuple[str, Any, str, bool]] = []
        self.topics: dict[str, Any] = {}
        self.subscriptions: dict[str, Any] = {}
        self.waiting: dict[str, deque[tuple[Any, int]]] = defaultdict(deque)
        self.leased: dict[str, dict[str, Lease]] = defaultdict(dict)
        self.calls: dict[str, int] = defaultdict(int)
        self.published: dict[str, list[Any]] = defaultdict(list)
        self.pulling: dict[str, int] = defaultdict(int)
        """How many pulls wait at a subscription now."""
        self.most_pulling: dict[str, int] = defaultdict(int)
        self._server = grpc.server(ThreadPoolExecutor(32))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.host = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0.2).wait()

    def fail(self, call: str, code: str, words: str = "injected", times: int = 1, *, after: bool = False) -> None:
        """Let the next calls of a kind fail; ``after``: they are done all the same, and only the answer is lost."""
        import grpc

        self._faults += [(call, grpc.StatusCode[code], words, after)] * times

    def heal(self) -> None:
        """Forget the faults that were not met."""
        self._faults.clear()

    def fault(self, call: str, after: bool) -> None:
        with self._changed:
            found = next((each for each in self._faults if each[0] == call and each[3] == after), None)
            if found:
                self._faults.remove(found)
                raise _Refused(found[1], found[2])

    def make(self, name: str | None = None, *, deadline: int = 10, dead_letters: int = 0) -> tuple[str, str]:
        """A topic and its subscription of one id; return their whole names."""
        from google.pubsub_v1 import types

        name = name or f"s-{uuid.uuid4().hex[:10]}"
        topic, subscription = f"projects/{PROJECT}/topics/{name}", f"projects/{PROJECT}/subscriptions/{name}"
        self.topics[topic] = types.Topic(name=topic)
        made = types.Subscription(name=subscription, topic=topic, ack_deadline_seconds=deadline)
        if dead_letters:
            dead = f"{topic}-dead"
            self.topics[dead] = types.Topic(name=dead)
            made.dead_letter_policy = types.DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=dead_letters)
        self.subscriptions[subscription] = made
        return topic, subscription

    def say(self, topic: str, body: bytes = b"", **attributes: str) -> str:
        """Publish a message; return its id."""
        from google.pubsub_v1 import types

        return self._publish(topic, [types.PubsubMessage(data=body, attributes=attributes)])[0]

    def again(self, subscription: str, topic: str, index: int = -1) -> None:
        """Deliver a message once more, as Pub/Sub may at any time."""
        with self._changed:
            self.waiting[subscription].append((self.published[topic][index], 1))
            self._changed.notify_all()

    def left(self, subscription: str) -> int:
        """How many messages are not acknowledged."""
        with self._changed:
            return len(self.waiting[subscription]) + len(self.leased[subscription])

    # What clients ask.

    def _publish(self, topic: str, messages: Any) -> list[str]:
        self._need(self.topics, topic)
        with self._changed:
            for message in messages:
                message.message_id = str(next(self._ids))
                message.publish_time = datetime.now(UTC)
                self.published[topic].append(message)
                for each in self.subscriptions.values():
                    if each.topic == topic:
                        self.waiting[each.name].append((message, 0))
            self._changed.notify_all()
            return [message.message_id for message in messages]

    def Publish(self, request: Any) -> Any:
        from google.pubsub_v1 import types

        return types.PublishResponse(message_ids=self._publish(request.topic, list(request.messages)))

    def CreateTopic(self, request: Any) -> Any:
        return self._new(self.topics, request)

    def GetTopic(self, request: Any) -> Any:
        return self._need(self.topics, request.topic)

    def ListTopics(self, request: Any) -> Any:
        from google.pubsub_v1 import types

        mine = [each for name, each in self.topics.items() if name.startswith(f"{request.project}/")]
        return types.ListTopicsResponse(topics=mine)

    def DeleteTopic(self, request: Any) -> None:
        self._need(self.topics, request.topic)
        del self.topics[request.topic]

    def CreateSubscription(self, request: Any) -> Any:
        self._need(self.topics, request.topic)
        request.ack_deadline_seconds = request.ack_deadline_seconds or 10
        return self._new(self.subscriptions, request)

    def GetSubscription(self, request: Any) -> Any:
        return self._need(self.subscriptions, request.subscription)

    def ListSubscriptions(self, request: Any) -> Any:
        from google.pubsub_v1 import types

        mine = [each for name, each in self.subscriptions.items() if name.startswith(f"{request.project}/")]
        return types.ListSubscriptionsResponse(subscriptions=mine)

    def DeleteSubscription(self, request: Any) -> None:
        self._need(self.subscriptions, request.subscription)
        del self.subscriptions[request.subscription]

    def Pull(self, request: Any) -> Any:
        from google.pubsub_v1 import types

        name = request.subscription
        until = time.monotonic() + (0 if request.return_immediately else _WAITS)
        with self._changed:
            self.pulling[name] += 1
            self.most_pulling[name] = max(self.most_pulling[name], self.pulling[name])
            try:
                while True:
                    subscription = self._need(self.subscriptions, name)
                    self._expire(subscription)
                    found = self._lease(subscription, request.max_messages)
                    if found or time.monotonic() >= until:
                        return types.PullResponse(received_messages=found)
                    self._changed.wait(0.2)
            finally:
                self.pulling[name] -= 1

    def _lease(self, subscription: Any, most: int) -> list[Any]:
        from google.pubsub_v1 import types

        queue, found = self.waiting[subscription.name], []
        while queue and len(found) < most:
            message, deliveries = queue.popleft()
            ack = f"{subscription.name}:{next(self._ids)}"
            until = time.monotonic() + subscription.ack_deadline_seconds
            self.leased[subscription.name][ack] = Lease(message, deliveries + 1, until)
            found.append(types.ReceivedMessage(ack_id=ack, message=message))
        return found

    def _expire(self, subscription: Any) -> None:
        most = subscription.dead_letter_policy.max_delivery_attempts
        for ack, lease in list(self.leased[subscription.name].items()):
            if lease.until > time.monotonic():
                continue
            del self.leased[subscription.name][ack]
            if most and lease.deliveries >= most:
                self.published[subscription.dead_letter_policy.dead_letter_topic].append(lease.message)
            else:
                self.waiting[subscription.name].append((lease.message, lease.deliveries))

    def Acknowledge(self, request: Any) -> None:
        self._need(self.subscriptions, request.subscription)
        with self._changed:
            for ack in request.ack_ids:
                self.leased[request.subscription].pop(ack, None)

    def ModifyAckDeadline(self, request: Any) -> None:
        self._need(self.subscriptions, request.subscription)
        with self._changed:
            leased = self.leased[request.subscription]
            for ack in request.ack_ids:
                if ack in leased:
                    leased[ack] = leased[ack]._replace(until=time.monotonic() + request.ack_deadline_seconds)
            self._changed.notify_all()

    @staticmethod
    def _need(there: dict[str, Any], name: str) -> Any:
        import grpc

        if name not in there:
            raise _Refused(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return there[name]

    @staticmethod
    def _new(there: dict[str, Any], made: Any) -> Any:
        import grpc

        if made.name in there:
            words = f"Resource already exists in the project (resource={made.name.rpartition('/')[2]})."
            raise _Refused(grpc.StatusCode.ALREADY_EXISTS, words)
        there[made.name] = made
        return made


_REQUESTS = {"CreateTopic": "Topic", "CreateSubscription": "Subscription"}


class _Handlers:
    """From a method's name to what answers it."""

    def __init__(self, server: PubSub) -> None:
        self.server = server

    def service(self, details: Any) -> Any:
        import grpc
        from google.pubsub_v1 import types

        method = details.method.rpartition("/")[2]
        answer: Callable[[Any], Any] | None = getattr(self.server, method, None) if method[0].isupper() else None
        if answer is None:
            return None
        kind = getattr(types, _REQUESTS.get(method, f"{method}Request"))

        def call(request: Any, context: Any) -> Any:
            self.server.calls[method] += 1
            try:
                self.server.fault(method, after=False)
                answered = answer(request)
                self.server.fault(method, after=True)
            except _Refused as refused:
                context.abort(refused.code, refused.words)
            return answered

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=kind.deserialize, response_serializer=_serialized
        )


def _serialized(answer: Any) -> bytes:
    return b"" if answer is None else bytes(type(answer).serialize(answer))


@pytest.fixture(scope="session")
def pubsub_server() -> Iterator[PubSub]:
    """One server for the session; `client_environment` leads clients to it."""
    server = PubSub()
    yield server
    server.stop()


def client_environment(host: str) -> dict[str, str]:
    """What Google's clients read, here and in the processes that are started."""
    return {
        "PUBSUB_EMULATOR_HOST": host,
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": '{"conn_type": "google_cloud_platform", "extra": {"is_anonymous": true}}',
        "NO_GCE_CHECK": "true",
    }


@pytest.fixture
def pubsub(pubsub_server: PubSub, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubSub]:
    """The server, without the faults of another test."""
    for name, value in client_environment(pubsub_server.host).items():
        monkeypatch.setenv(name, value)
    yield pubsub_server
    pubsub_server.heal()
