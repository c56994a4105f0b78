"""Retrain requests: each is answered once, and none is lost."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry import Ledger, Request, Requests
from airflow_mlops.registry.requests import MAX_ATTEMPTS, cooling_until
from tests import toy

CLAIMER = """
import json
from airflow_mlops.call import Store
from airflow_mlops.registry import Requests
store, me = sys.argv[1], sys.argv[2]
requests = Requests(Store(store), "m")
ready(me)
print(json.dumps([request.id for request in requests.claim(me, lambda run: True)]))
"""
KILLED = """
import os, signal, sys
from airflow_mlops.call import Store
from airflow_mlops.registry import Requests
Requests(Store(sys.argv[1]), "m").claim("killed", lambda run: True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def always(run: str) -> bool:
    return True


def never(run: str) -> bool:
    return False


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    return Requests(Store(str(tmp_path / "store")), "m")


def wish(month: str = "2024-01", champion: str = "1", reason: str = "amount moved") -> Request:
    return Request(model="m", champion=champion, reason=reason, trigger="drift", window=toy.month(month))


def ids(found: list[Request]) -> list[str]:
    return [request.id for request in found]


def test_the_same_wish_is_recorded_once(requests: Requests) -> None:
    assert requests.open(wish())
    assert not requests.open(wish(reason="said in other words"))
    assert requests.open(wish("2024-02"))
    assert requests.open(wish(champion="2"))
    assert len(requests.all()) == 3


def test_a_claim_is_found_again_by_its_own_run_and_by_nobody_else(requests: Requests) -> None:
    requests.open(wish())
    assert ids(requests.claim("a", always)) == [wish().id]
    assert ids(requests.claim("a", always)) == [wish().id]
    assert requests.claim("b", always) == []
    recorded = requests.find(wish().id)
    assert recorded is not None and (recorded.state, recorded.run, recorded.attempts) == ("claimed", "a", 1)


def test_in_a_burst_of_processes_each_request_is_claimed_once(requests: Requests, tmp_path: Path) -> None:
    wishes = [wish(champion=str(number)) for number in range(12)]
    for each in wishes:
        requests.open(each)
    taken = toy.race(CLAIMER, tmp_path / "store", [(f"run{index}",) for index in range(5)])
    claimed = [request for each in taken for request in each]
    assert sorted(claimed) == sorted(each.id for each in wishes)


def test_the_claim_of_a_killed_worker_is_taken_over_once_its_run_is_over(requests: Requests, tmp_path: Path) -> None:
    requests.open(wish())
    killed = toy.start(KILLED, str(tmp_path / "store"))
    assert killed.wait() == -signal.SIGKILL
    assert requests.claim("b", always) == []
    assert ids(requests.claim("b", lambda run: run != "killed")) == [wish().id]
    assert requests.claimed_by("b") == [wish().id]
    assert requests.claimed_by("killed") == []


def test_a_cleared_task_of_a_finished_run_finds_its_own_claims(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert requests.settle("a", "promoted") == [wish().id]
    assert ids(requests.claim("a", always)) == [wish().id]
    assert requests.claim("b", never) == []


def test_a_run_that_failed_has_given_back_and_the_next_one_takes_it(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert requests.unanswered(always) == []
    assert ids(requests.unanswered(never)) == [wish().id]
    assert ids(requests.claim("b", never)) == [wish().id]
    assert requests.claimed_by("a") == []
    assert requests.settle("a", "too late") == []


def test_a_request_of_a_run_that_ended_without_a_word_rings_again(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert ids(requests.unanswered(never)) == [wish().id]
    requests.settle("a", "promoted")
    assert requests.unanswered(never) == []


def test_settling_twice_settles_once(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert requests.settle("a", "promoted") == [wish().id]
    assert requests.settle("a", "promoted") == []
    recorded = requests.find(wish().id)
    assert recorded is not None and recorded.entries == 3


def test_a_request_taken_in_vain_too_often_rings_no_more_and_can_still_be_taken(requests: Requests) -> None:
    requests.open(wish())
    for attempt in range(MAX_ATTEMPTS):
        assert ids(requests.unanswered(never)) == [wish().id]
        requests.claim(f"run{attempt}", never)
    assert requests.unanswered(never) == []
    assert ids(requests.claim("by hand", never)) == [wish().id]


def test_an_unknown_request_is_none(requests: Requests) -> None:
    assert requests.find("nothing") is None


def test_a_decision_of_any_kind_starts_the_cooldown(tmp_path: Path) -> None:
    ledger = Ledger(Store(str(tmp_path / "store")), "m")
    assert cooling_until(ledger.entries(), timedelta(hours=1)) is None
    ledger.record("rejection", version="1", champion_before=None, decision="d", reasons=(), run="r")
    until = cooling_until(ledger.entries(), timedelta(hours=1))
    assert until is not None and until > datetime.now(UTC) + timedelta(minutes=59)
    assert cooling_until(ledger.entries(), timedelta(0)) is None
    assert cooling_until(ledger.entries(), timedelta(microseconds=1)) is None
