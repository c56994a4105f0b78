"""Walks of policies through a made-up history, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from airflow_mlops.registry.advice import CHANCE, FEWEST, advise, sign_flip
from airflow_mlops.registry.replay import Attempt, Day, Gated, Judge, Judged, Policy, Training, Walk, walk
from airflow_mlops.spec.pipeline import DataDrift, Retrain
from airflow_mlops.spec.window import Window, parse_key, shift

START = parse_key("day", "2024-01-01")
NOW = timedelta(0)
AT_ONCE = Retrain(cooldown=timedelta(0), max_per_week=None)


def days(count: int) -> list[Window]:
    return [shift("day", START, step) for step in range(1, count + 1)]


class Made:
    """A history in which listed windows alarm, listed trainings fail, and listed models are turned away."""

    def __init__(
        self,
        alarms: Sequence[int] = (),
        refused: Sequence[int] = (),
        failing: Sequence[int] = (),
        unsure: Sequence[int] = (),
    ) -> None:
        self.alarms, self.refused, self.failing, self.unsure = alarms, refused, failing, unsure
        self.trained: list[str] = []
        self.scored: list[tuple[str, str]] = []
        self.earlier: dict[str, list[str]] = {}

    def train(self, window: Window) -> Training:
        self.trained.append(window.key)
        return Training("no rows" if _number(window) in self.failing else None, 2.0)

    def metric(self, model: Window, window: Window) -> float | None:
        self.scored.append((model.key, window.key))
        return 1.0 - (window.start - model.start) / timedelta(days=100)

    def judge(self, by: Judge, model: Window, window: Window, earlier: Sequence[Window]) -> Judged:
        self.earlier[window.key] = [each.key for each in earlier]
        status = "drift" if _number(window) in self.alarms else "warn" if _number(window) in self.unsure else "ok"
        return Judged(status, "x moved", 0.5)

    def gate(self, model: Window, champion: Window) -> Gated:
        assert champion.end <= model.start
        return Gated(_number(model) not in self.refused, "the gate")


def _number(window: Window) -> int:
    return (window.start - START.start).days


def ours(**retrain: Any) -> Policy:
    return Policy("ours", DataDrift(), AT_ONCE.model_copy(update=retrain))


def served(found: Walk) -> list[str]:
    return [day.served[-2:] for day in found.days]


def test_never_serves_the_first_champion_and_every_window_the_newest() -> None:
    world = Made()
    never = walk(Policy("never"), world, START, days(3), NOW)
    assert (served(never), never.attempts, world.trained, world.earlier) == (["01"] * 3, (), [], {})
    every = walk(Policy("every", every=True), world, START, days(3), NOW)
    assert served(every) == ["01", "02", "03"]
    assert [each.window[-2:] for each in every.attempts] == ["02", "03", "04"]
    assert (every.cpu, every.accepted, every.judging) == (6.0, 3, 0.0)


def test_an_alarm_trains_on_its_window_and_the_model_serves_from_the_next_one() -> None:
    world = Made(alarms=[2])
    found = walk(ours(), world, START, days(4), NOW)
    assert served(found) == ["01", "01", "03", "03"]
    assert [day.alarm for day in found.days] == [False, True, False, False]
    assert found.judging == 2.0
    # What was held against the old champion confirms nothing against the new one.
    assert world.earlier == {
        "2024-01-02": [],
        "2024-01-03": ["2024-01-02"],
        "2024-01-04": [],
        "2024-01-05": ["2024-01-04"],
    }


def test_a_model_that_is_turned_away_or_that_nobody_could_train_changes_nothing_and_costs() -> None:
    found = walk(ours(), Made(alarms=[1, 2], refused=[1], failing=[2]), START, days(3), NOW)
    assert served(found) == ["01"] * 3
    assert [(each.accepted, each.said) for each in found.attempts] == [(False, "the gate"), (False, "no rows")]
    assert found.cpu == 4.0


def test_what_the_cooldown_holds_is_started_when_it_is_over_unless_its_reason_has_passed() -> None:
    def started(**made: Any) -> list[tuple[str, int]]:
        found = walk(ours(cooldown=timedelta(days=2)), Made(refused=[2], **made), START, days(6), NOW)
        return [(each.window[-2:], each.at.day) for each in found.attempts]

    # The first champion was promoted on the 2nd, so the alarm that is known on the 3rd waits for the 4th.
    assert started(alarms=[1, 2]) == [("03", 4)]
    assert started(alarms=[1]) == []
    # A window that is not sure does not make the reason of the one before pass.
    assert started(alarms=[1], unsure=[2]) == [("02", 4)]
    # After the rejection of the 4th comes the next one on the 6th, on the newest window that asks.
    assert started(alarms=[1, 2, 3, 4]) == [("03", 4), ("05", 6)]


def test_a_training_that_failed_is_tried_again_where_a_later_window_says_the_same() -> None:
    failed = Made(alarms=[1, 3], failing=[1], unsure=[2])
    found = walk(ours(), failed, START, days(4), NOW)
    assert [(each.window[-2:], each.at.day, each.accepted) for each in found.attempts] == [
        ("02", 3, False),
        ("04", 5, True),
    ]


def test_a_scheduled_training_answers_what_waits() -> None:
    policy = ours(cooldown=timedelta(days=3))._replace(ticks=(START.end + timedelta(days=1),))
    found = walk(policy, Made(alarms=[1], unsure=[2, 3, 4, 5]), START, days(5), NOW)
    assert [(each.window[-2:], each.at.day, each.why) for each in found.attempts] == [("02", 3, "the schedule")]
    assert found.days[0].said.startswith("x moved (held: the cooldown of 3 days is on")


def test_a_tick_before_a_window_has_settled_reads_it_as_it_is_today() -> None:
    policy = Policy("declared", None, AT_ONCE, (START.end + timedelta(days=1), START.end + timedelta(days=1, hours=12)))
    found = walk(policy, Made(), START, days(3), timedelta(hours=6))
    assert [(each.window[-2:], each.at.day, each.at.hour) for each in found.attempts] == [("02", 3, 0)]
    assert served(found) == ["01", "02", "02"]


def test_the_schedule_trains_whatever_the_data_say_and_a_policy_that_observes_does_not() -> None:
    ticks = (START.end + timedelta(days=2),)
    scheduled = walk(Policy("declared", DataDrift(), AT_ONCE, ticks), Made(), START, days(4), NOW)
    assert [(each.window, each.why) for each in scheduled.attempts] == [("2024-01-03", "the schedule")]
    observed = walk(ours(mode="observe"), Made(alarms=[1, 2]), START, days(3), NOW)
    assert (observed.attempts, [day.alarm for day in observed.days]) == ((), [True, True, False])
    asked = walk(ours(mode="suggest"), Made(alarms=[1]), START, days(2), NOW)
    assert [each.window for each in asked.attempts] == ["2024-01-02"]


numbers = st.lists(st.integers(1, 30), unique=True)


@given(
    alarms=numbers,
    refused=numbers,
    failing=numbers,
    cooldown=st.integers(0, 5),
    budget=st.one_of(st.none(), st.integers(1, 3)),
    settle=st.integers(0, 30),
)
def test_every_walk_keeps_its_limits_and_serves_what_could_have_been_known(
    alarms: list[int], refused: list[int], failing: list[int], cooldown: int, budget: int | None, settle: int
) -> None:
    world = Made(alarms, refused, failing)
    policy = ours(cooldown=timedelta(days=cooldown), max_per_week=budget)
    windows = days(30)
    found = walk(policy, world, START, windows, timedelta(hours=settle))
    assert found == walk(policy, Made(alarms, refused, failing), START, windows, timedelta(hours=settle))
    assert [day.window for day in found.days] == [each.key for each in windows]
    assert all(model < window for model, window in world.scored)
    starts = [each.at for each in found.attempts]
    assert all(later - earlier >= timedelta(days=cooldown) for earlier, later in pairwise(starts))
    if budget is not None:
        assert all(sum(at <= each < at + timedelta(days=7) for each in starts) <= budget for at in starts)
    assert world.trained == [each.window for each in found.attempts] == sorted(set(world.trained))
    ends = {window.key: window.end + timedelta(hours=settle) for window in windows}
    assert all(each.at >= ends[each.window] for each in found.attempts)
    champions = [START.key, *(each.window for each in found.attempts if each.accepted)]
    assert [key for key, _ in _runs(found)] == champions[: len(_runs(found))]


def _runs(found: Walk) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for day in found.days:
        if runs and runs[-1][0] == day.served:
            runs[-1] = (day.served, runs[-1][1] + 1)
        else:
            runs.append((day.served, 1))
    return runs


def made(policy: str, values: Sequence[float | None], trainings: int = 0) -> Walk:
    at = START.end
    attempts = [Attempt(f"w{index}", at, "", True, "", 10.0) for index in range(trainings)]
    told = [Day(f"w{index}", "w", value, None, "") for index, value in enumerate(values)]
    return Walk(policy, tuple(told), tuple(attempts), 0.0)


@given(st.lists(st.floats(-1, 1).map(lambda each: round(each, 6)).filter(bool), min_size=2, max_size=10))
def test_the_sign_flip_is_scipys_permutation_test(values: list[float]) -> None:
    expected = permutation_test(
        (np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert sign_flip(values) == pytest.approx(expected.pvalue, abs=1e-9)


def test_the_sign_flip_of_many_is_drawn_and_of_none_says_nothing() -> None:
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.1] * 40) < 0.001
    assert 0.3 < sign_flip([0.1, -0.1] * 20) < 0.7


def choose(*walks: Walk, more_is_better: bool = True) -> tuple[str | None, str]:
    advice = advise(walks, more_is_better=more_is_better, settings=[each.policy for each in walks])
    return advice.policy, "; ".join(advice.reasons)


def test_the_cheapest_is_chosen_that_history_does_not_show_to_be_worse() -> None:
    best = [0.80, 0.81, 0.79, 0.80, 0.82, 0.80, 0.81, 0.80]
    near = [0.80, 0.80, 0.80, 0.79, 0.83, 0.79, 0.82, 0.79]
    far = [each - 0.05 for each in best]
    policy, reason = choose(made("never", far), made("every", best, 8), made("ours", near, 2))
    assert policy == "ours"
    assert "with 2 trainings its mean of 0.8025 is 0.0013 behind every, which takes 8" in reason
    assert "never is 0.0500 behind every, beyond its standard error of 0.0000 (chance gives that 0% of" in reason
    assert choose(made("never", near), made("every", best, 8))[0] == "never"
    # Of an error, less is better.
    errors = [-each for each in far]
    assert choose(made("never", errors), made("every", [-x for x in best], 8), more_is_better=False)[0] == "every"


def test_what_is_not_shown_to_be_worse_is_not_taken_for_as_good() -> None:
    best, lame = [0.80] * 8, [0.80, 0.82, 0.75, 0.79, 0.74, 0.76, 0.82, 0.76]
    standing = advise([made("never", lame), made("every", best, 8)], more_is_better=True, settings=["never", "every"])
    never = standing.standings[0]
    assert never.error < never.behind and not never.worse
    assert standing.policy == "every"


def test_a_short_history_is_said_to_be_too_short() -> None:
    assert 0.5**FEWEST <= CHANCE < 0.5 ** (FEWEST - 1)
    policy, reason = choose(made("never", [0.7] * 4), made("every", [0.8, 0.81, 0.82, 0.83], 4))
    assert policy is None
    assert "history is too short" in reason
    assert choose(made("never", [0.7] * 4), made("every", [0.7] * 4, 4))[0] == "never"
    assert choose(made("never", [None] * 4), made("every", [0.7] * 4, 4))[0] is None


def test_windows_that_a_policy_has_no_metric_on_are_left_out_of_all() -> None:
    walks = [made("never", [0.1, 0.7, 0.7]), made("every", [None, 0.7, 0.7], 3)]
    found = advise(walks, more_is_better=True, settings=["never", "every"])
    assert [each.mean for each in found.standings] == [0.7, 0.7]


def test_evidently_is_shown_and_never_chosen() -> None:
    walks = [made("evidently", [0.9] * 8, 1), made("every", [0.8] * 8, 8)]
    found = advise(walks, more_is_better=True, settings=["every"])
    assert found.policy == "every"
    assert [each.policy for each in found.standings] == ["evidently", "every"]
