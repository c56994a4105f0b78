"""The retrain policy: what it lets start, whatever comes in whatever order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.call import Call, Store
from airflow_mlops.registry import Ledger, Request, Requests
from airflow_mlops.registry import requests as module
from airflow_mlops.registry.policy import OPEN, WEEK, Standing, decide, starts
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.window import parse_key
from tests import toy

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
CLOSED = ("recorded", "done", "withdrawn", "rejected")


def always(run: str) -> bool:
    return True


def never(run: str) -> bool:
    return False


def policy(**given: Any) -> Retrain:
    return Retrain.model_validate(given)


def wish(day: int = 1, trigger: str = "drift", champion: str | None = "1") -> Request:
    window = parse_key("day", f"2024-01-{day:02d}")
    return Request(model="m", champion=champion, reason=f"day {day}", trigger=trigger, window=window)


class Log:
    """The log in memory; an entry is refused under a number that is taken, as in the store."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        return list(self.written)

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        if number != len(self.written) + 1:
            return False
        self.written.append(entry)
        return True


class Life:
    """A model's requests, at a time that the test sets, with a policy."""

    def __init__(self, patch: pytest.MonkeyPatch, declared: Retrain, store: str = "memory://policy") -> None:
        self.now, self.policy, self.standing, self.runs = BEGIN, declared, Standing(champion="1"), 0
        self.active: set[str] = set()
        self.requests = Requests(Store(store), "m")
        self.log = Log()
        self.requests._log = self.log  # type: ignore[assignment]
        patch.setattr(module, "_now", lambda: self.now)

    def ask(self, request: Request) -> str:
        return self.requests.ask(request, self.policy, self.standing).state

    def review(self) -> None:
        self.requests.review(self.policy, self.standing, self.active.__contains__)

    def run(self) -> str:
        self.runs += 1
        self.active.add(f"run{self.runs}")
        return f"run{self.runs}"

    def state(self, request: Request) -> str:
        found = self.requests.find(request.id)
        assert found is not None
        return found.state


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **given: Life(monkeypatch, policy(**given))


POLICIES = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["auto", "suggest", "observe"]),
        "cooldown": st.sampled_from(["0s", "2h", "1d", "3d"]),
        "max_per_week": st.sampled_from([None, 1, 2, 3]),
    }
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("alarm"), st.integers(1, 28), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.integers(0, 80)),
        st.sampled_from(
            [("look",), ("rung",), ("rung",), ("done",), ("lost",), ("put",), ("yes",), ("no",), ("gone",)]
        ),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(POLICIES, EVENTS)
def test_whatever_comes_the_policy_starts_no_more_than_it_allows(
    declared: dict[str, Any], events: Sequence[tuple[Any, ...]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        life = Life(patch, Retrain.model_validate(declared))
        asking = ""
        trained: list[datetime] = []
        for event in events:
            life.now += timedelta(seconds=1)
            match event:
                case ("alarm", day, times):
                    for _ in range(times):
                        life.ask(wish(day))
                case ("wait", hours):
                    life.now += timedelta(hours=hours)
                case ("look",):
                    life.review()
                case ("rung",):
                    before = life.requests.all()
                    # The event may be a duplicate: it claims only what may start.
                    claimed = life.requests.claim(life.run(), life.active.__contains__, rung=True)
                    if claimed:
                        trained.append(life.now)
                        assert any(each.state == "started" for each in before)
                case ("done",) if life.runs:
                    life.requests.settle(f"run{life.runs}", "it was better")
                    life.active.discard(f"run{life.runs}")
                case ("lost",):
                    life.active.clear()
                case ("put",):
                    asking = life.run()
                    life.requests.put(asking, life.active.__contains__)
                case ("yes",) | ("no",):
                    life.requests.answer(asking, event[0] == "yes", "ann", "ann said so")
                case ("gone",):
                    life.standing = life.standing._replace(champion="2", decided=life.now)
        recorded = life.requests.all()
        begun = sorted(starts(recorded))
        if life.policy.mode == "observe":
            assert begun == [] and {each.state for each in recorded} <= {"recorded"}
        for first, second in itertools.pairwise(begun):
            assert second - first >= life.policy.cooldown
        if life.policy.max_per_week is not None:
            for at in begun:
                assert sum(at <= each < at + WEEK for each in begun) <= life.policy.max_per_week
        # Nothing was trained that the policy had not started, and never two trainings for one start.
        assert len(trained) <= len(begun)
        # Each wish has one record, however often it was asked.
        assert len({each.request.id for each in recorded}) == len(recorded)
        # One question at a time, and one training that waits.
        assert sum(each.state in ("suggested", "asking", "started") for each in recorded) <= 1


@settings(max_examples=60)
@given(POLICIES, st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_neither_order_nor_duplicates_change_how_many_start(declared: Any, days: list[int], random: Any) -> None:
    counts = []
    for repeat in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            life = Life(patch, Retrain.model_validate(declared))
            delivered = days * repeat
            random.shuffle(delivered)
            for day in delivered:
                life.now += timedelta(seconds=1)
                life.ask(wish(day))
            life.review()
            found = life.requests.all()
            assert {each.request.id for each in found} == {wish(day).id for day in days}
            counts.append((len(starts(found)), sum(each.state == "suggested" for each in found)))
    assert counts[0] == counts[1]
    assert counts[0] == {"auto": (1, 0), "suggest": (0, 1), "observe": (0, 0)}[declared["mode"]]


def test_the_defaults_are_a_day_between_two_and_three_a_week(life: Any) -> None:
    it = life()
    answers = []
    for day in range(1, 10):
        answers.append(it.ask(wish(day)))
        it.requests.claim(it.run(), always, rung=True)
        it.requests.settle(f"run{it.runs}", "it was better")
        it.now += timedelta(hours=25)
    assert answers == ["started"] * 3 + ["held"] * 4 + ["started"] * 2


def test_what_is_held_says_until_when_and_starts_then(life: Any) -> None:
    it = life(cooldown="1d", max_per_week=2)
    for day in (1, 2, 3):
        it.ask(wish(day))
        it.requests.claim(it.run(), always, rung=True)
        it.requests.settle(f"run{it.runs}", "done")
        it.now += timedelta(days=2)
    held = it.requests.find(wish(3).id)
    assert held is not None
    assert (held.last.why, held.last.until) == (
        "the policy has started 2 trainings in 7 days, of 2 that it may",
        BEGIN + WEEK,
    )
    it.review()
    assert it.state(wish(3)) == "held"
    entries = len(it.log.written)
    it.review()
    assert len(it.log.written) == entries, "looking again writes nothing"
    it.now = BEGIN + WEEK
    it.review()
    assert it.state(wish(3)) == "started"


def test_of_several_that_are_held_the_newest_window_starts(life: Any) -> None:
    it = life(cooldown="1d", max_per_week=None)
    it.standing = Standing(champion="1", decided=BEGIN)
    for day in (2, 9, 5):
        assert it.ask(wish(day)) == "held"
    it.now += timedelta(days=1)
    it.review()
    assert [it.state(wish(day)) for day in (2, 9, 5)] == ["held", "started", "held"]
    assert len(it.requests.claim("run", always, rung=True)) == 3


def test_a_new_champion_withdraws_what_was_about_the_old_one(life: Any) -> None:
    it = life(cooldown="0s", triggers=["drift", {"model": "geo"}])
    it.ask(wish(1))
    it.ask(wish(2))
    it.ask(wish(2, "model", "geo@3"))
    it.standing = Standing(champion="2")
    it.review()
    assert [it.state(each) for each in (wish(1), wish(2))] == ["withdrawn", "withdrawn"]
    assert it.state(wish(2, "model", "geo@3")) == "started", "another model's promotion stays a reason"
    found = it.requests.find(wish(1).id)
    assert found is not None and found.last.why == "it was about champion 1, and version 2 serves now"


@pytest.mark.parametrize("late", [False, True])
def test_a_newer_quiet_window_withdraws_what_is_held_in_whatever_order_they_come(life: Any, late: bool) -> None:
    it = life(cooldown="1d")
    it.standing = Standing(champion="1", decided=BEGIN)
    if not late:
        assert it.ask(wish(3)) == "held"
    it.standing = it.standing._replace(quiet={"drift": parse_key("day", "2024-01-04")})
    if late:
        it.ask(wish(3))
    it.review()
    assert it.state(wish(3)) == "withdrawn"
    assert it.ask(wish(5)) == "held", "a window after the quiet one"
    assert it.ask(wish(4, "skew")) == "held", "quiet in another respect"


def test_a_run_that_is_lost_is_no_free_start(life: Any) -> None:
    it = life(cooldown="1d", max_per_week=2)
    it.ask(wish(1))
    for _ in range(4):
        it.requests.claim(it.run(), never, rung=True)
        it.active.clear()
        it.review()
        assert it.state(wish(1)) in ("held", "claimed")
        it.now += timedelta(days=1, seconds=1)
        it.review()
    found = it.requests.find(wish(1).id)
    assert found is not None and len(starts([found])) == found.attempts == 2


def test_one_question_for_several_suggestions(life: Any) -> None:
    it = life(mode="suggest", cooldown="1d")
    assert [it.ask(wish(day)) for day in (1, 2, 3)] == ["suggested", "held", "held"]
    asking = it.run()
    (asked,) = it.requests.put(asking, it.active.__contains__)
    assert asked.request == wish(1)
    assert it.requests.put(it.run(), it.active.__contains__) == [], "another run asks nothing"
    it.requests.answer(asking, False, "ann", "ann said no")
    it.review()
    assert [it.state(wish(day)) for day in (1, 2, 3)] == ["rejected", "held", "held"]
    refused = it.requests.find(wish(1).id)
    assert refused is not None and (refused.last.by, refused.last.why) == ("ann", "ann said no")
    it.now += timedelta(days=1)
    it.review()
    assert [it.state(wish(day)) for day in (1, 2, 3)] == ["rejected", "held", "suggested"]


def test_a_scheduled_run_answers_the_question_that_waits(life: Any) -> None:
    it = life(mode="suggest")
    it.ask(wish(1))
    asking = it.run()
    it.requests.put(asking, it.active.__contains__)
    assert it.requests.claim("scheduled", always, rung=False) == [wish(1)]
    assert it.requests.answer(asking, True, "ann", "ann approved") == []
    assert it.state(wish(1)) == "claimed"


def test_a_question_whose_run_was_lost_is_asked_again(life: Any) -> None:
    it = life(mode="suggest")
    it.ask(wish(1))
    it.requests.put(it.run(), it.active.__contains__)
    it.review()
    assert it.state(wish(1)) == "asking"
    it.active.clear()
    it.review()
    assert it.state(wish(1)) == "suggested"
    assert len(it.requests.put(it.run(), it.active.__contains__)) == 1


def test_a_mode_that_was_changed_holds_for_what_waits(life: Any) -> None:
    it = life(mode="suggest")
    it.ask(wish(1))
    it.policy = policy(mode="auto")
    it.review()
    assert it.state(wish(1)) == "started"
    it.policy = policy(mode="observe")
    it.review()
    assert it.state(wish(1)) == "recorded"
    it.policy = policy(mode="auto")
    it.review()
    assert it.state(wish(1)) == "recorded"


@pytest.mark.parametrize(
    ("triggers", "trigger", "state"),
    [
        (["drift"], "skew", "recorded"),
        (["skew"], "skew", "started"),
        ([], "drift", "recorded"),
        (["drift"], "model", "recorded"),
        (["drift", {"model": "geo"}], "model", "started"),
        (["drift"], "pubsub", "recorded"),
        ([{"pubsub": "projects/my-project/subscriptions/wishes"}], "pubsub", "started"),
        (["performance"], "performance", "started"),
    ],
)
def test_only_what_the_policy_listens_to_starts(triggers: Any, trigger: str, state: str) -> None:
    decision = decide(policy(triggers=triggers), [], Standing(), wish(1, trigger), BEGIN)
    assert decision.state == state


def test_the_standing_is_that_of_the_ledger_and_of_the_verdicts(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    requests, verdicts = Requests(store, "m"), Verdicts(store, "m")
    assert requests.standing(wish(1)) == Standing()
    Ledger(store, "m").record("promotion", version="7", champion_before=None, decision="d", reasons=(), run="r")

    def judge(day: int, status: str, run: str = "r") -> None:
        window = parse_key("day", f"2024-01-{day:02d}")
        verdicts.record(
            Call(pipeline="m", stage="monitor", run=run, window=window, store=store.root), {"status": status}
        )

    judge(2, "ok")
    judge(4, "drift")
    judge(5, "insufficient_data")
    found = requests.standing(wish(1))
    assert found.champion == "7" and found.decided is not None
    assert {trigger: window.key for trigger, window in found.quiet.items()} == {"drift": "2024-01-02"}
    assert requests.standing(wish(3)).quiet == {}
    judge(4, "ok", "again")
    assert requests.standing(wish(3)).quiet["drift"].key == "2024-01-04"


STORM = """
import json, random
from airflow_mlops.call import Store
from airflow_mlops.registry import Request, Requests
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.window import parse_key
store, seed, policies = Store(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
alarms = [(model, day) for model in policies for day in range(1, 11)] * 2
random.Random(seed).shuffle(alarms)
ready(sys.argv[2])
for model, day in alarms:
    requests = Requests(store, model)
    window = parse_key("day", f"2024-01-{day:02d}")
    wish = Request(model=model, champion="1", reason="drift", trigger="drift", window=window)
    policy = Retrain.model_validate(policies[model])
    requests.ask(wish, policy, requests.standing(wish))
    requests.review(policy, requests.standing(), lambda run: True)
    # What a run does that an event has started, as often as the event comes.
    requests.claim(f"{model}.train/{seed}-{day}", lambda run: True, rung=True)
print(json.dumps(None))
"""


def test_in_a_storm_of_processes_exactly_what_the_policy_allows_starts(tmp_path: Path) -> None:
    """200 alarms on 20 models, each delivered eight times, by four processes at once."""
    kinds = {
        "cooling": {},
        "spent": {"cooldown": "0s", "max_per_week": 2},
        "asking": {"mode": "suggest"},
        "watching": {"mode": "observe"},
        "deaf": {"triggers": ["skew"]},
    }
    policies = {f"{kind}{index}": body for index in range(4) for kind, body in kinds.items()}
    toy.race(STORM, tmp_path / "store", [(str(seed), json.dumps(policies)) for seed in range(4)])
    store = Store(str(tmp_path / "store"))
    found = {model: Requests(store, model).all() for model in policies}
    assert sum(map(len, found.values())) == 200
    begun = {model: len(starts(recorded)) for model, recorded in found.items()}
    runs = {model: {each.run for each in recorded if each.run} for model, recorded in found.items()}
    expected = {"cooling": 1, "spent": 2, "asking": 0, "watching": 0, "deaf": 0}
    assert begun == {model: expected[model[:-1]] for model in policies}
    # Each start is taken by one run, and no run has taken anything without one.
    assert {model: len(taken) for model, taken in runs.items()} == begun
    for model, recorded in found.items():
        states = [each.state for each in recorded]
        assert states.count("suggested") == (1 if model.startswith("asking") else 0)
        if model.startswith(("watching", "deaf")):
            assert states == ["recorded"] * 10
        else:
            assert {each for each in states if each not in ("claimed", "suggested")} <= OPEN
