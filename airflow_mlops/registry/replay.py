"""What a retrain policy would have done over windows that have passed: a walk through history that changes nothing.

All that a policy may ask of history (train on this window, score that model on that one, has this one drifted from
that model's reference, does this model pass the gate against that one) is a `World`, which answers once and remembers.
A walk is then a pure function of policy and world, and takes its decisions with the very functions that monitoring
takes them with (`airflow_mlops.registry.policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, Protocol

from airflow_mlops.registry.policy import OPEN, Decision, Recorded, Request, Standing, Step, decide, review
from airflow_mlops.spec.pipeline import DataDrift, Retrain
from airflow_mlops.spec.window import Window

Judge = DataDrift | Literal["evidently"] | None
"""Who says that a window has drifted: our decision under a rule, Evidently's preset, or nobody."""


class Training(NamedTuple):
    """What came of training when a window was the newest."""

    failed: str | None
    """Why there is no model; None where there is one."""
    cpu: float
    """The CPU seconds it took."""


class Judged(NamedTuple):
    """What was said of a window's drift."""

    status: str
    """The verdict: ``ok``, ``warn``, ``drift``, ``insufficient_data``, or ``error`` where a person must look."""
    why: str
    """The first reason in plain words."""
    cpu: float = 0.0
    """The CPU seconds it took to say so."""


class Gated(NamedTuple):
    """What the gate said of a new model against the champion."""

    passed: bool
    why: str


class World(Protocol):
    """What history answers. A model goes by the window that was the newest when it was trained."""

    def train(self, window: Window) -> Training:
        """Train as the pipeline would with this window as the newest."""

    def metric(self, model: Window, window: Window) -> float | None:
        """The primary metric of a model on a later window; None where it is not defined there."""

    def judge(self, by: Judge, model: Window, window: Window, earlier: Sequence[Window]) -> Judged:
        """Hold a window against a model's reference; ``earlier`` were held against it before, oldest first."""

    def gate(self, model: Window, champion: Window) -> Gated:
        """Hold a model against the champion on rows that neither was trained on."""


class Policy(NamedTuple):
    """When to retrain."""

    name: str
    judge: Judge = None
    """Who raises an alarm."""
    retrain: Retrain = Retrain()
    """What becomes of an alarm. ``suggest`` is replayed as if every person said yes at once."""
    ticks: tuple[datetime, ...] = ()
    """When a training starts whatever the data say, rising."""
    every: bool = False
    """Train on every window as it is complete."""


class Attempt(NamedTuple):
    """One training of a policy."""

    window: str
    """The newest window that it read."""
    at: datetime
    """When it would have started."""
    why: str
    """What asked for it."""
    accepted: bool
    """Whether its model became the champion."""
    said: str
    """The gate's reason, or why there was no model."""
    cpu: float
    """The CPU seconds it took."""


class Day(NamedTuple):
    """One window of a walk."""

    window: str
    served: str
    """The window that the champion knew last that served then."""
    value: float | None
    """Its metric on this window, which it has never seen; None where it is not defined."""
    verdict: str | None
    """What was found when the window was complete, in a word; None where nobody looked."""
    said: str
    """The same in words, and what became of a request."""

    @property
    def alarm(self) -> bool:
        """Whether it was a reason to retrain."""
        return self.verdict == "drift"


class Walk(NamedTuple):
    """What a policy did over history."""

    policy: str
    days: tuple[Day, ...]
    attempts: tuple[Attempt, ...]
    judging: float
    """The CPU seconds of its drift decisions."""

    @property
    def values(self) -> tuple[float | None, ...]:
        """The metric window by window."""
        return tuple(day.value for day in self.days)

    @property
    def cpu(self) -> float:
        """The CPU seconds of its trainings."""
        return sum(each.cpu for each in self.attempts)

    @property
    def accepted(self) -> int:
        """How many of its trainings brought a new champion."""
        return sum(each.accepted for each in self.attempts)


def walk(policy: Policy, world: World, start: Window, windows: Sequence[Window], settle: timedelta) -> Walk:
    """Walk a policy through history.

    A window is scored by the champion that had come of all windows before it. Then it is complete and, ``settle``
    after its end, is judged; what that starts is trained, gated and, where it passes, serves from the next window on.

    Args:
        policy: the policy.
        world: what history answers.
        start: the window that the champion at the start knew last. It was promoted when that was complete.
        windows: the windows to walk through, oldest first, all after ``start``.
        settle: how long after its end a window is complete.
    """
    return _Walking(policy, world, start, settle).through(windows)


class _Walking:
    def __init__(self, policy: Policy, world: World, start: Window, settle: timedelta) -> None:
        self.policy, self.world, self.settle = policy, world, settle
        self.champion = self.trained = start
        self.failed = False
        self.at = self.decided = start.end + settle
        self.known = [start]
        self.earlier: list[Window] = []
        self.records: list[Recorded] = []
        self.quiet: dict[str, Window] = {}
        self.attempts: list[Attempt] = []
        self.judging = 0.0

    def through(self, windows: Sequence[Window]) -> Walk:
        days = []
        for window in windows:
            served = self.champion
            value = self.world.metric(served, window)
            self.known.append(window)
            now = window.end + self.settle
            ticks = [at for at in self.policy.ticks if self.at < at <= now]
            for at in ticks:
                if at < now:
                    self._scheduled(at, "the schedule")
            verdict, said = self._judge(window, now)
            # A training takes longer than a verdict: a window is judged by the champion that its training replaces.
            if now in ticks or self.policy.every:
                self._scheduled(now, "every window" if self.policy.every else "the schedule")
            days.append(Day(window.key, served.key, value, verdict, said))
            self.at = now
        return Walk(self.policy.name, tuple(days), tuple(self.attempts), self.judging)

    def _judge(self, window: Window, now: datetime) -> tuple[str | None, str]:
        """Look at a window that is complete, ask for a training on drift, and look again at what waits."""
        if self.policy.judge is None:
            return None, ""
        judged = self.world.judge(self.policy.judge, self.champion, window, tuple(self.earlier))
        self.judging += judged.cpu
        self.earlier.append(window)
        said = judged.why
        if judged.status == "ok":
            self.quiet["drift"] = window
        standing = Standing(self.champion.key, self.decided, self.quiet)
        if judged.status == "drift":
            request = Request(
                model="replay",
                champion=self.champion.key,
                reason=f"drift in {window.key}: {judged.why}",
                trigger="drift",
                window=window,
            )
            decision = decide(self.policy.retrain, self.records, standing, request, now)
            self.records.append(Recorded(request, (_step(decision, now),)))
            said += f" ({decision.state}: {decision.why})"
        while due := review(self.policy.retrain, self.records, standing, now, lambda run: False):
            self._note(due[0], _step(due[1], now))
        if rung := [each for each in self.records if each.state in ("started", "suggested")]:
            for each in rung:
                if each.state == "suggested":
                    self._note(each, Step("started", now, "a person said yes"))
            newest = max(self._waiting(), key=_end)
            self._answer(newest.request.window or window, now, newest.request.reason)
        return judged.status, said

    def _scheduled(self, at: datetime, why: str) -> None:
        """Train on the newest window that has ended."""
        self._answer(max(each for each in self.known if each.end <= at), at, why)

    def _answer(self, window: Window, at: datetime, why: str) -> None:
        """Train, and so answer every request that waits."""
        taken = self._waiting()
        for each in taken:
            self._note(each, Step("claimed", at, run=at.isoformat()))
        if self._train(window, at, why):
            for each in taken:
                self._note(each, Step("done", at))

    def _waiting(self) -> list[Recorded]:
        """The requests that a run takes: those that wait, and those that one has given back."""
        return [each for each in self.records if each.state in OPEN or each.state == "claimed"]

    def _note(self, record: Recorded, step: Step) -> None:
        at = next(at for at, each in enumerate(self.records) if each.request.id == record.request.id)
        self.records[at] = Recorded(record.request, (*self.records[at].steps, step))

    def _train(self, window: Window, at: datetime, why: str) -> bool:
        """Train and hold the model against the champion; say whether there was a model."""
        if window.end <= self.trained.end:
            return not self.failed  # trained already: the same rows would give the same model
        self.trained = window
        training = self.world.train(window)
        self.failed = training.failed is not None
        gated = Gated(False, training.failed) if training.failed is not None else self.world.gate(window, self.champion)
        self.attempts.append(Attempt(window.key, at, why, gated.passed, gated.why, training.cpu))
        if not self.failed:
            self.decided = at
        if gated.passed:
            self.champion, self.earlier, self.quiet = window, [], {}
        return not self.failed


def _step(decision: Decision, at: datetime) -> Step:
    return Step(decision.state, at, decision.why, decision.until)


def _end(record: Recorded) -> datetime:
    assert record.request.window is not None  # noqa: S101 - a replay asks about windows only
    return record.request.window.end
