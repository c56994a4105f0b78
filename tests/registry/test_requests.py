"""Retrain requests: each is answered once, and none is lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.call import Store
from airflow_mlops.errors import StoreError
from airflow_mlops.registry import Ledger, Request, Requests
from airflow_mlops.registry.policy import MAX_ATTEMPTS
from airflow_mlops.spec.pipeline import Retrain
from tests import forked, toy

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


UNLIMITED = Retrain.model_validate({"cooldown": "0s", "max_per_week": None})


def always(run: str) -> bool:
    return True


def never(run: str) -> bool:
    return False


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    return Requests(Store(str(tmp_path / "store")), "m")


def wish(month: str = "2024-01", champion: str = "1", reason: str = "amount moved") -> Request:
    return Request(model="m", champion=champion, reason=reason, trigger="drift", window=toy.month(month))


def rings(requests: Requests, is_active: Callable[[str], bool]) -> list[str]:
    """The requests that a monitoring run would ring for, whatever the limits."""
    return [each.request.id for each in requests.review(UNLIMITED, requests.standing(), is_active)]


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
    forked.killed(KILLED, str(tmp_path / "store"))
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
    assert rings(requests, always) == []
    assert rings(requests, never) == [wish().id]
    assert ids(requests.claim("b", never)) == [wish().id]
    assert requests.claimed_by("a") == []
    assert requests.settle("a", "too late") == []


def test_a_request_of_a_run_that_ended_without_a_word_rings_again(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert rings(requests, never) == [wish().id]
    requests.settle("a", "promoted")
    assert rings(requests, never) == []


def test_settling_twice_settles_once(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    assert requests.settle("a", "promoted") == [wish().id]
    assert requests.settle("a", "promoted") == []
    recorded = requests.find(wish().id)
    assert recorded is not None and [step.state for step in recorded.steps] == ["started", "claimed", "done"]


def test_a_request_taken_in_vain_too_often_rings_no_more_and_can_still_be_taken(requests: Requests) -> None:
    requests.open(wish())
    for attempt in range(MAX_ATTEMPTS):
        assert rings(requests, never) == [wish().id]
        requests.claim(f"run{attempt}", never)
    assert rings(requests, never) == []
    assert ids(requests.claim("by hand", never)) == [wish().id]


def test_an_unknown_request_is_none(requests: Requests) -> None:
    assert requests.find("nothing") is None


def test_a_surplus_run_takes_nothing_that_is_held(requests: Requests) -> None:
    policy = Retrain.model_validate({"cooldown": "1d"})
    assert requests.ask(wish(), policy, requests.standing()).state == "started"
    assert ids(requests.claim("a", always, rung=True)) == [wish().id]
    requests.settle("a", "promoted")
    assert requests.ask(wish("2024-02"), policy, requests.standing()).state == "held"
    # The event that started the first run comes a second time.
    assert requests.claim("b", always, rung=True) == []
    assert ids(requests.claim("by hand", always)) == [wish("2024-02").id]


def test_a_run_that_was_rung_for_answers_what_is_held_too(requests: Requests) -> None:
    policy = Retrain.model_validate({"cooldown": "1d"})
    for month in ("2024-01", "2024-02", "2024-03"):
        requests.ask(wish(month), policy, requests.standing())
    assert [each.state for each in requests.all()] == ["started", "held", "held"]
    assert len(requests.claim("a", always, rung=True)) == 3


def test_a_cleared_run_takes_its_request_again_although_the_policy_holds_it(requests: Requests) -> None:
    policy = Retrain.model_validate({"cooldown": "1d"})
    requests.ask(wish(), policy, requests.standing())
    requests.claim("a", always, rung=True)
    assert requests.review(policy, requests.standing(), never) == []
    assert requests.all()[0].state == "held"
    assert ids(requests.claim("a", always, rung=True)) == [wish().id]


def test_a_request_that_its_own_run_answers_is_no_start(requests: Requests) -> None:
    requests.take(wish(), "a")
    requests.take(wish(), "a")
    assert ids(requests.claim("a", always)) == [wish().id]
    assert [step.state for step in requests.all()[0].steps] == ["claimed"]


@pytest.mark.parametrize("kind", ["promotion", "rejection"])
def test_a_decision_of_any_kind_starts_the_cooldown(requests: Requests, kind: Any) -> None:
    ledger = Ledger(requests.store, "m")
    ledger.record(kind, version="1", champion_before=None, decision="d", reasons=(), run="r")
    held = requests.ask(wish(), Retrain(), requests.standing()).last
    assert held.state == "held" and held.until == ledger.entries()[-1].at + Retrain().cooldown
    assert requests.ask(wish("2024-02"), UNLIMITED, requests.standing()).state == "started"


def test_an_object_store_s_entries_come_in_their_order() -> None:
    requests = Requests(Store(f"memory://{uuid.uuid4().hex}"), "m")
    wishes = [wish(champion=str(number)) for number in range(40)]
    for each in wishes:
        requests.open(each)
    assert [each.request for each in Requests(requests.store, "m").all()] == wishes


def test_a_missing_entry_is_an_error_and_not_a_loop(requests: Requests) -> None:
    requests.open(wish())
    requests.claim("a", always)
    (Path(requests.store.root) / "requests" / "m" / "00000001.json").unlink()
    with pytest.raises(StoreError, match="00000001.json was removed"):
        Requests(requests.store, "m").open(wish("2024-02"))
