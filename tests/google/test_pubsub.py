"""Messages of Pub/Sub, by the provider's own hooks over loopback: what is received, what is kept, and who is woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.call import Store
from airflow_mlops.errors import CloudAccessError, CloudError, CloudNotFoundError, CloudUnreachableError
from airflow_mlops.hooks.pubsub import Subscription
from airflow_mlops.registry import messages
from airflow_mlops.registry.messages import Inbox, Listener, Message, meant, message_of, stands
from airflow_mlops.triggers import PubsubTrigger
from airflow_mlops.triggers import pubsub as triggers
from tests.loopback.pubsub import PROJECT, PubSub

AT = datetime(2024, 3, 1, tzinfo=UTC)
SOURCE = "gs://data/churn/{window}.parquet"
MONTHLY = Listener(model="churn", grain="month", source=SOURCE)


def told(body: bytes = b"", **attributes: str) -> Message:
    return message_of("1", AT, attributes, body)


def notified(name: str, event: str = "OBJECT_FINALIZE", **attributes: str) -> Message:
    return told(b"{...}", eventType=event, bucketId="data", objectId=name, **attributes)


@pytest.mark.parametrize(
    ("message", "window"),
    [
        (told(), None),
        (told(model="churn"), None),
        (told(models="prices, churn"), None),
        (told(model="churn", window="2024-02"), "2024-02"),
        (notified("churn/2024-02.parquet"), "2024-02"),
        (notified("churn/2024-02.parquet", model="churn"), "2024-02"),
    ],
)
def test_a_message_is_for_those_that_it_names_and_a_file_for_those_that_read_it(
    message: Message, window: str | None
) -> None:
    asked = meant(message, MONTHLY)
    assert asked is not None
    assert (asked.window.key if asked.window else None, asked.problem) == (window, None)


@pytest.mark.parametrize(
    "message",
    [
        told(model="prices"),
        notified("churn/2024-02.csv"),
        notified("churn/2024-2.parquet"),
        notified("churn/old/2024-02.parquet"),
        notified("churn/2024-13.parquet"),
        notified("churn/2024-02.parquet", model="prices"),
        notified("churn/2024-02.parquet", "OBJECT_DELETE"),
        notified("churn/2024-02.parquet", "OBJECT_METADATA_UPDATE"),
        # One of our own would go round in circles.
        told(model="churn", event="promotion", source="airflow-mlops"),
    ],
)
def test_nobody_else_hears_of_it(message: Message) -> None:
    assert meant(message, MONTHLY) is None
    assert message.problem is None


@pytest.mark.parametrize(
    ("source", "file", "grain", "window"),
    [
        ("gs://data/{window}", "gs://data/2024-02/part-1.parquet", "month", "2024-02"),
        ("gs://data/month={window}/", "gs://data/month=2024-02/a/b.csv", "month", "2024-02"),
        ("gs://data/{window}/*.parquet", "gs://data/2024-02/a.parquet", "month", "2024-02"),
        ("gs://data/{window}/{window}.csv", "gs://data/2024-02/2024-02.csv", "month", "2024-02"),
        ("gs://data/all", "gs://data/all/x.parquet", None, None),
    ],
)
def test_folders_and_patterns(source: str, file: str, grain: Any, window: str | None) -> None:
    message = notified(file.removeprefix("gs://data/"))
    asked = meant(message, Listener(model="m", grain=grain, source=source))
    assert asked is not None and (asked.window.key if asked.window else None) == window
    # What a writer leaves beside its files is no file of the source.
    assert meant(notified("2024-02/_SUCCESS"), Listener(model="m", grain=grain, source=source)) is None


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (told(model=" "), "names nobody"),
        (told(b"\xff\xfe"), "no UTF-8"),
        (told(b"x" * 70_000), "70,000 bytes, of 65,536"),
        (told(eventType="OBJECT_FINALIZE"), "without 'bucketId'"),
        (told(model="chrun"), "no pipeline 'chrun' listens here; allowed: churn, prices; try: churn"),
        (told(model="churn", window="2024-02-01"), "'2024-02-01' is not a window of one month"),
        (told(model="prices", window="2024-02"), "comes in none"),
    ],
)
def test_what_nobody_can_use_is_set_aside_with_the_reason(message: Message, words: str) -> None:
    (stand,) = stands([message], [MONTHLY, Listener(model="prices", grain=None)])
    assert words in str(stand.problem)
    assert stand.models == ()


def test_a_half_useful_message_is_used_and_its_other_half_told() -> None:
    (stand,) = stands([told(models="churn,nobody")], [MONTHLY])
    assert stand.models == ("churn",) and "no pipeline 'nobody'" in str(stand.problem)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", str(tmp_path / "store"))
    # Each test is a triggerer of its own.
    monkeypatch.setattr(triggers, "_inboxes", {})
    return Store(str(tmp_path / "store"))


def test_an_inbox_keeps_each_message_once_whoever_writes(store: Store) -> None:
    one, other = (Inbox(store, f"projects/{PROJECT}/subscriptions/s") for _ in range(2))
    first, second = (message_of(id_, AT, {}, b"") for id_ in ("1", "2"))
    assert (one.put([first]), other.put([first, second]), one.put([second])) == (1, 2, 2)
    for each in (one, other, Inbox(store, one.subscription)):
        each.load()
        assert [(number, message.id) for number, message in each.known()] == [(1, "1"), (2, "2")]
    assert [message.id for _, message in one.known(1)] == ["2"]


def test_what_is_old_is_forgotten_and_numbers_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(store, f"projects/{PROJECT}/subscriptions/s")
    for id_ in ("1", "2", "3"):
        inbox.put([message_of(id_, AT, {}, b"")])
    now = datetime.now(UTC)
    assert inbox.prune(now + messages.KEPT - timedelta(days=1)) == 0
    assert inbox.prune(now + messages.KEPT + timedelta(days=1)) == 2
    after = Inbox(store, inbox.subscription)
    assert (after.load(), [message.id for _, message in after.known()]) == (3, ["3"])
    assert after.put([message_of("4", AT, {}, b"")]) == 4


async def take(events: AsyncIterator[Any], count: int, seconds: float = 30) -> list[Any]:
    """The first events of a trigger."""
    found: list[Any] = []

    async def go() -> None:
        async for event in events:
            found.append(event.payload)
            if len(found) == count:
                return

    await asyncio.wait_for(go(), seconds)
    await events.aclose()  # type: ignore[attr-defined]
    return found


async def eventually(true: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


def kept(store: Store, subscription: str) -> list[str]:
    inbox = Inbox(store, subscription)
    inbox.load()
    return [message.id for _, message in inbox.known()]


def test_a_message_is_kept_then_acknowledged_then_told(pubsub: PubSub, store: Store) -> None:
    topic, subscription = pubsub.make()
    said = [pubsub.say(topic, b"labels came", model="churn"), pubsub.say(topic, model="prices")]

    (event,) = asyncio.run(take(PubsubTrigger(subscription, "churn", "month").run(), 1))

    assert event == {"subscription": subscription, "entry": 1, "messages": 1}
    assert kept(store, subscription) == said
    assert pubsub.left(subscription) == 0


def test_what_was_kept_and_not_asked_about_is_told_again_after_a_restart(
    pubsub: PubSub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, subscription = pubsub.make()
    pubsub.say(topic)
    trigger = PubsubTrigger(subscription, "churn", "month")
    first = asyncio.run(take(trigger.run(), 1))
    monkeypatch.setattr(triggers, "_inboxes", {})
    assert asyncio.run(take(trigger.run(), 1)) == first
    # A run has asked: nothing is told any more.
    Inbox(store, subscription).advance(MONTHLY, 1)
    monkeypatch.setattr(triggers, "_inboxes", {})
    with pytest.raises(TimeoutError):
        asyncio.run(take(trigger.run(), 1, 3))


@pytest.mark.parametrize("step", ["put", "acknowledge", "told"])
def test_a_triggerer_that_ends_at_any_point_loses_nothing_and_keeps_nothing_twice(
    pubsub: PubSub, store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    topic, subscription = pubsub.make(deadline=1)
    said = pubsub.say(topic, model="churn")

    class Ended(BaseException):
        pass

    async def end(*_: Any) -> Any:
        raise Ended

    def end_now(*_: Any) -> Any:
        raise Ended

    with monkeypatch.context() as killed, pytest.raises(Ended):
        if step == "put":
            killed.setattr(Inbox, "put", end_now)
        elif step == "acknowledge":
            killed.setattr(Subscription, "acknowledge", end)
        else:
            killed.setattr(Inbox, "follow", end_now)
        asyncio.run(take(PubsubTrigger(subscription, "churn", "month").run(), 1))
    monkeypatch.setattr(triggers, "_inboxes", {})

    async def restarted() -> None:
        goes_on = asyncio.create_task(take(PubsubTrigger(subscription, "churn", "month").run(), 2, 60))
        await eventually(lambda: pubsub.left(subscription) == 0 and kept(store, subscription))
        goes_on.cancel()

    asyncio.run(restarted())
    assert kept(store, subscription) == [said]


def test_a_lost_acknowledgement_brings_it_again_and_it_is_kept_once(pubsub: PubSub, store: Store) -> None:
    topic, subscription = pubsub.make(deadline=1)
    pubsub.fail("Acknowledge", "UNAVAILABLE", times=50)

    async def both() -> None:
        events = PubsubTrigger(subscription, "churn", "month").run()
        said = pubsub.say(topic)
        task = asyncio.create_task(take(events, 1, 60))
        await eventually(lambda: pubsub.calls["Acknowledge"] > 0 and kept(store, subscription) == [said])
        assert pubsub.left(subscription) == 1
        pubsub.heal()
        await task
        again = asyncio.create_task(take(PubsubTrigger(subscription, "churn", "month").run(), 2, 60))
        await eventually(lambda: pubsub.left(subscription) == 0)
        again.cancel()
        assert kept(store, subscription) == [said]

    asyncio.run(both())


@pytest.mark.parametrize(
    ("code", "words", "error", "fix"),
    [
        (
            "PERMISSION_DENIED",
            "User not authorized to perform this action.",
            CloudAccessError,
            "--role roles/pubsub.subscriber",
        ),
        ("NOT_FOUND", "Resource not found (resource=s).", CloudNotFoundError, "gcloud pubsub subscriptions create"),
        ("RESOURCE_EXHAUSTED", "Quota exceeded", CloudUnreachableError, ""),
        ("FAILED_PRECONDITION", "The subscription is detached.", CloudError, ""),
    ],
)
def test_what_pubsub_refuses_is_told_with_what_mends_it(
    pubsub: PubSub, code: str, words: str, error: type[Exception], fix: str
) -> None:
    _, subscription = pubsub.make()
    pubsub.fail("Pull", code, words)
    with pytest.raises(error) as raised:
        asyncio.run(Subscription(subscription, "google_cloud_default").pull())
    assert words in str(raised.value) and subscription in str(raised.value) and fix in str(raised.value)


def test_a_connection_that_is_not_there_is_told(pubsub: PubSub) -> None:
    _, subscription = pubsub.make()
    with pytest.raises(CloudAccessError, match="there is no connection 'nobody'"):
        asyncio.run(Subscription(subscription, "nobody").pull())


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "UNAVAILABLE", "PERMISSION_DENIED", "NOT_FOUND"])
def test_the_loop_goes_on_when_what_was_wrong_is_mended(
    pubsub: PubSub, store: Store, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, subscription = pubsub.make()
    monkeypatch.setattr(triggers, "_FIRST_PAUSE", 0.2)
    pubsub.fail("Pull", code, times=1)

    async def both() -> None:
        task = asyncio.create_task(take(PubsubTrigger(subscription, "churn", "month").run(), 1))
        inbox = Inbox(store, subscription)
        if code in ("PERMISSION_DENIED", "NOT_FOUND"):
            await eventually(lambda: inbox.trouble() or task.done())
        pubsub.say(topic)
        await task

    asyncio.run(both())
    assert len(kept(store, subscription)) == 1


def test_a_hundred_models_are_served_by_one_loop_and_each_hears_its_own(
    pubsub: PubSub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.triggers.shared_stream import SharedStreamManager

    topic, subscription = pubsub.make()
    woken: dict[str, list[int]] = {f"m{number:03}": [] for number in range(100)}

    async def listen(manager: Any, number: int, model: str) -> None:
        trigger = PubsubTrigger(subscription, model, "month")
        stream = manager.subscribe(trigger_id=number, trigger=trigger, key=trigger.shared_stream_key())
        async for event in trigger.filter_shared_stream(stream):
            woken[model].append(event.payload["messages"])

    async def all_of_them() -> float:
        manager = SharedStreamManager()
        tasks = [asyncio.create_task(listen(manager, n, model)) for n, model in enumerate(woken)]
        await eventually(lambda: len(Inbox(store, subscription).listeners()) == 100 and pubsub.pulling[subscription])
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began - 0.01)

        watching = asyncio.create_task(watch())
        for number in range(50):
            pubsub.say(topic, model=f"m{number:03}")
        pubsub.say(topic)
        await eventually(lambda: all(woken.values()) and pubsub.left(subscription) == 0)
        for task in (*tasks, watching):
            task.cancel()
        await manager.stop_all()
        return longest

    longest = asyncio.run(all_of_them())
    assert pubsub.most_pulling[subscription] == 1
    assert sum(sum(each) for each in woken.values()) == 50 + 100
    assert sum(woken["m099"]) == 1
    # The event loop is the triggerer's: nothing here may hold it up. Two noisy cores are given some room.
    assert longest < 1.0
