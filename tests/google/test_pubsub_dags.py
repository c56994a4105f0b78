"""From a message to a training, and from the ledger to a topic, in real DAG runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_mlops.call import Store
from airflow_mlops.cli.main import main
from airflow_mlops.registry.messages import Inbox, message_of
from airflow_mlops.registry.outbox import Outbox, Told
from airflow_mlops.triggers import PubsubTrigger
from airflow_mlops.triggers import pubsub as triggers
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.google.test_pubsub import AT, take
from tests.loopback.pubsub import PROJECT, PubSub


@pytest.fixture(scope="module")
def hearing(promoted: Airflow, pubsub_server: PubSub) -> Iterator[tuple[Airflow, str, str]]:
    """A pipeline with a champion that hears of messages and publishes what happens to it; its topics."""
    topic, subscription = pubsub_server.make()
    events, _ = pubsub_server.make()
    promoted.declare(
        retrain={"triggers": ["drift", {"pubsub": subscription}]},
        google={"project": PROJECT, "region": "europe-west1", "topic": events.rpartition("/")[2]},
        retries=0,
    )
    yield promoted, topic, events


def receive(airflow: Airflow, subscription: str, *messages: Any) -> None:
    Inbox(airflow.store, subscription).put(messages)


def watched(dag: Any) -> list[Any]:
    """The assets with watchers that a DAG waits for."""
    condition = dag.timetable.asset_condition
    return [asset for asset in getattr(condition, "objects", [condition]) if asset.watchers]


def subscription_of(topic: str) -> str:
    return topic.replace("topics", "subscriptions")


def events_of(pubsub: PubSub, topic: str) -> list[tuple[str, dict[str, Any]]]:
    return [(each.attributes["id"], json.loads(each.data)) for each in pubsub.published[topic]]


def test_the_train_dag_waits_for_messages_by_one_watcher(hearing: Any) -> None:
    airflow, topic, _ = hearing
    (asset,) = watched(airflow.dag("train"))
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1] == {
        "subscription": subscription_of(topic),
        "model": airflow.name,
        "grain": "month",
        "source": "data/{window}.parquet",
        "connection": "google_cloud_default",
        "store": None,
    }


def test_a_message_trains_once_and_what_came_of_it_is_published(
    hearing: Any, pubsub: PubSub, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow, topic, events = hearing
    subscription = subscription_of(topic)
    monkeypatch.setattr(triggers, "_inboxes", {})
    said = pubsub.say(topic, b"the labels were corrected", model=airflow.name, window="2024-02")
    bad = pubsub.say(topic, model=airflow.name, window="2024-02-30")
    asyncio.run(take(PubsubTrigger(subscription, airflow.name, "month").run(), 1))

    run = airflow.run("train", "asset_triggered")

    assert run.state == "success"
    (recorded,) = airflow.requests()
    assert recorded.request.reason == f"message {said} of {subscription.rpartition('/')[2]}: the labels were corrected"
    assert (recorded.request.window.key, recorded.state) == ("2024-02", "done")
    entry = airflow.ledger()[-1]
    assert (entry.window, entry.requests) == ("2024-02", (recorded.request.id,))
    # It comes again, and starts nothing.
    pubsub.again(subscription, topic, 0)
    receive(airflow, subscription, message_of(said, AT, {"model": airflow.name, "window": "2024-02"}, b""))
    assert airflow.run("train", "asset_triggered").states["start"] == "skipped"
    assert len(airflow.requests()) == 1

    told = events_of(pubsub, events)
    ids = [id_ for id_, _ in told]
    # The January promotion, which came before the topic was named, is told too, and nothing twice.
    assert sorted(ids) == sorted(
        {f"{airflow.name}/ledger/{number + 1}" for number in range(len(airflow.ledger()))}
        | {f"{airflow.name}/requests/1"}
    )
    by_id = dict(told)
    assert by_id[f"{airflow.name}/requests/1"]["reason"] == recorded.request.reason
    last = by_id[f"{airflow.name}/ledger/{entry.number}"]
    assert (last["event"], last["version"], last["entry"]) == (entry.kind, entry.version, entry.number)
    assert last["reasons"] == list(entry.reasons)
    assert bad in set_aside(airflow, subscription)


def set_aside(airflow: Airflow, subscription: str) -> dict[str, str]:
    from contextlib import redirect_stdout
    from io import StringIO

    text = StringIO()
    with redirect_stdout(text):
        assert main(["messages", subscription, "--set-aside", "--json", "--store", airflow.store.root]) == 0
    (found,) = json.loads(text.getvalue())
    return {each["id"]: each["set_aside"] for each in found["messages"]}


def test_a_topic_that_is_down_fails_nothing_and_is_caught_up_with(hearing: Any, pubsub: PubSub, caplog: Any) -> None:
    airflow, _, events = hearing
    before = len(pubsub.published[events])
    pubsub.fail("Publish", "PERMISSION_DENIED", "not allowed", times=50)
    run = airflow.run("train", conf={"window": "2024-03"})
    assert run.state == "success"
    assert len(pubsub.published[events]) == before
    assert "--role roles/pubsub.publisher" in caplog.text
    pubsub.heal()
    # Whatever runs next tells it.
    airflow.run("train", "asset_triggered")
    assert [body["entry"] for _, body in events_of(pubsub, events)[before:]] == [airflow.ledger()[-1].number]


def test_what_could_not_be_told_is_told_next_in_order_and_with_the_same_id(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    for number in (1, 2):
        store.create_json({"kind": "promotion", "at": f"2024-01-0{number}"}, "ledger", "m", f"{number:08d}.json")
    seen: list[str] = []

    def down(messages: Any) -> None:
        seen.extend(each.attributes["id"] for each in messages)
        raise ConnectionError

    outbox = Outbox(store, "m")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            outbox.send(down)
    assert seen == ["m/ledger/1", "m/ledger/2"] * 2
    told: list[Told] = []
    assert (outbox.send(told.extend), outbox.send(told.extend)) == (2, 0)
    assert [each.attributes["id"] for each in told] == ["m/ledger/1", "m/ledger/2"]


def test_a_suggestion_is_asked_about_where_a_person_decides(airflow: Airflow, pubsub: PubSub) -> None:
    _, subscription = pubsub.make()
    toy.months(airflow.folder, ("2024-01",), 50)
    airflow.declare(retrain={"mode": "suggest", "triggers": [{"pubsub": subscription}]})
    receive(airflow, subscription, message_of("7", AT, {}, b"please"))
    run = airflow.run("retrain", "asset_triggered", triggers=False)
    assert run.states == {"approve": "awaiting_input"}
    assert "please" in airflow.question(run, "approve").body
    assert watched(airflow.dag("train")) == []
    assert [asset.name for asset in watched(airflow.dag("retrain"))] == [f"{airflow.name}.messages"]
