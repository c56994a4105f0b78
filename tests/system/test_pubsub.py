"""Messages of Pub/Sub under a real scheduler and triggerer: each becomes one request, whatever is killed meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from airflow_mlops.cli.services import Services
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.messages import Inbox
from airflow_mlops.registry.policy import Recorded
from airflow_mlops.registry.requests import Requests
from tests.loopback.pubsub import PROJECT, PubSub
from tests.running import HEARD
from tests.system.test_loop import ENDED, arrive, parsed, states, store, until

TOPIC, SUBSCRIPTION = f"projects/{PROJECT}/topics/heard", f"projects/{PROJECT}/subscriptions/heard"
ONE, OTHER = HEARD


def asked(running: Services, name: str) -> list[Recorded]:
    return Requests(store(running), name).all()


def messages(running: Services, name: str) -> list[str]:
    """The ids of the messages that have become requests."""
    return [str(each.request.message).rpartition("/")[2] for each in asked(running, name)]


def listening(running: Services) -> bool:
    return {each.model for each in Inbox(store(running), SUBSCRIPTION).listeners()} == set(HEARD)


def test_a_message_trains_the_model_that_it_names_and_nobody_else(running: Services, pubsub_server: PubSub) -> None:
    for name in HEARD:
        arrive(running, name, "2024-01")
    until(running, lambda: {f"{name}.train" for name in HEARD} <= parsed(running))
    until(running, lambda: listening(running))

    said = pubsub_server.say(TOPIC, b"labels were corrected", model=ONE, window="2024-01")

    until(running, lambda: [each.state for each in asked(running, ONE)] == ["done"])
    assert messages(running, ONE) == [said]
    assert Ledger(store(running), ONE).champion() == "1"
    assert (asked(running, OTHER), states(running, f"{OTHER}.train")) == ([], {})
    assert pubsub_server.left(SUBSCRIPTION) == 0


def test_a_burst_and_a_killed_triggerer_strand_nothing_and_do_nothing_twice(
    running: Services, pubsub_server: PubSub
) -> None:
    until(running, lambda: listening(running))
    before = {name: messages(running, name) for name in HEARD}
    said = []
    for number in range(50):
        said.append(pubsub_server.say(TOPIC))
        if number == 25:
            # Whatever it has pulled, kept, acknowledged or told by now.
            running.kill("triggerer", signal.SIGKILL)
    running.start_component("triggerer")

    for name in HEARD:
        until(running, lambda name=name: set(said) <= set(messages(running, name)), 240)
        until(running, lambda name=name: all(each.state == "done" for each in asked(running, name)), 240)
        assert sorted(messages(running, name)) == sorted({*before[name], *said})
        until(running, lambda name=name: set(states(running, f"{name}.train").values()) <= set(ENDED))
        assert "failed" not in states(running, f"{name}.train").values()
        # One training answers all that wait; no request was taken by two.
        assert {each.attempts for each in asked(running, name)} == {1}
    assert pubsub_server.left(SUBSCRIPTION) == 0


def test_what_nobody_can_use_comes_back_no_more_and_a_command_lists_it(
    running: Services, pubsub_server: PubSub
) -> None:
    before = {name: len(asked(running, name)) for name in HEARD}
    bad = [
        pubsub_server.say(TOPIC, model="heard3"),
        pubsub_server.say(TOPIC, b"\xff"),
        pubsub_server.say(TOPIC, b"x" * 70_000),
    ]

    until(running, lambda: set(bad) <= set(set_aside(running)))

    reasons = set_aside(running)
    assert "no pipeline 'heard3' listens here; allowed: heard1, heard2; try: heard" in reasons[bad[0]]
    assert (bad[1] in reasons, "70,000 bytes" in reasons[bad[2]]) == (True, True)
    until(running, lambda: pubsub_server.left(SUBSCRIPTION) == 0)
    assert {name: len(asked(running, name)) for name in HEARD} == before


def set_aside(running: Services) -> dict[str, str]:
    command = [sys.executable, "-m", "airflow_mlops", "messages", "heard", "--set-aside", "--json"]
    command += ["--store", str(running.store)]
    said = subprocess.run(command, env=running.environment, capture_output=True, text=True, check=True)
    found: Any = json.loads(said.stdout)
    return {each["id"]: each["set_aside"] for each in found[0]["messages"]}
