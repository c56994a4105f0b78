"""The retrain policy as a function of what is on record: whether a wish to retrain starts a training, waits, or not.

Nothing is read or written here. Whoever decides writes the decision down in the log that it was made from, by
compare-and-set (see `airflow_mlops.registry.requests`); so of any number of processes that ask at once each decides on
what the others have decided before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.wire import digest_of
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.window import Window

State = Literal["recorded", "held", "suggested", "asking", "started", "claimed", "done", "withdrawn", "rejected"]
"""How a request stands: on record only; held by the policy; for a person to decide; being asked of a person; rung for;
taken by a run; answered by a run; overtaken by events; refused by a person."""
OPEN: frozenset[State] = frozenset({"held", "suggested", "asking", "started"})
"""The states that wait for a run to take the request."""
MAX_ATTEMPTS = 3
"""A request taken this often in vain rings no more by itself; a scheduled or manual run still takes it."""
WEEK = timedelta(days=7)
IsActive = Callable[[str], bool]
"""Whether a run, by its id, still goes on."""


class Request(BaseModel):
    """A wish to retrain a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """The registered model."""
    champion: str | None
    """The champion that the reason is about."""
    reason: str
    """Why, in plain words."""
    trigger: str
    """What kind of reason: ``drift``, ``performance``, ``skew``, ``model`` or ``pubsub``."""
    window: Window | None = None
    """The window that training should end with."""
    evidence: str | None = None
    """Where to look: the link or URI of the verdict."""
    message: str | None = None
    """Of ``pubsub``: the subscription and the message's id, by which the wish is told from others."""

    @property
    def id(self) -> str:
        """The same for the same wish, whoever asks and however often."""
        if self.message:
            return digest_of([self.model, self.message])[7:27]
        return digest_of([self.model, self.champion, self.trigger, self.window.key if self.window else None])[7:27]


class Step(NamedTuple):
    """One thing that happened to a request."""

    state: State
    at: datetime
    why: str | None = None
    """The decision or the outcome in plain words."""
    until: datetime | None = None
    """Until when it is held; None where that is not known beforehand."""
    run: str | None = None
    """The run that took it, answered it, or put it to a person."""
    by: str | None = None
    """The person who decided."""

    @property
    def told(self) -> str:
        """The step in a line of words."""
        until = f", until {self.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if self.until else ""
        return f"{self.state}: {self.why}{until}" if self.why else self.state


class Recorded(NamedTuple):
    """A request and all that happened to it, oldest first."""

    request: Request
    steps: tuple[Step, ...]

    @property
    def last(self) -> Step:
        """How it stands."""
        return self.steps[-1]

    @property
    def state(self) -> State:
        """How it stands, in a word."""
        return self.last.state

    @property
    def run(self) -> str | None:
        """The run that has taken it last, or None; also where the policy has looked at it again since."""
        return next((step.run for step in reversed(self.steps) if step.state == "claimed"), None)

    @property
    def attempts(self) -> int:
        """How many runs have taken it."""
        return sum(step.state == "claimed" for step in self.steps)

    @property
    def told(self) -> str:
        """The request in a line of words: what asked, about which window, and who let it start."""
        window = f" in {self.request.window.key}" if self.request.window else ""
        by = next((f", approved by {step.by}" for step in self.steps if step.state == "started" and step.by), "")
        return f"{self.request.id}: {self.request.trigger}{window}{by}"

    def had(self, state: State, run: str) -> bool:
        """Whether a run once had it in a state."""
        return any(step.state == state and step.run == run for step in self.steps)


class Standing(NamedTuple):
    """What the policy has to know besides the requests."""

    champion: str | None = None
    """The champion of today."""
    decided: datetime | None = None
    """When the last promotion or rejection was."""
    quiet: Mapping[str, Window] = {}
    """By trigger, the newest window that was judged and gave no reason to retrain."""


class Decision(NamedTuple):
    """What becomes of a request."""

    state: State
    why: str
    until: datetime | None = None


def fold(entries: Iterable[Mapping[str, Any]]) -> dict[str, Recorded]:
    """The requests by id, in the order in which they were first asked, from the entries of their log."""
    found: dict[str, Recorded] = {}
    for entry in entries:
        until = entry.get("until")
        step = Step(
            state=entry["state"],
            at=datetime.fromisoformat(entry["at"]),
            why=entry.get("why"),
            until=datetime.fromisoformat(until) if until else None,
            run=entry.get("run"),
            by=entry.get("by"),
        )
        before = found.get(entry["id"])
        request = before.request if before else Request.model_validate(entry["request"])
        found[entry["id"]] = Recorded(request, (*(before.steps if before else ()), step))
    return found


def moot(request: Request, standing: Standing) -> str | None:
    """Why the reason of a request is none any more, or None while it holds.

    A promotion of another model's stays one, and so does a message; any other reason is about the champion, and about
    the newest word on it.
    """
    if request.trigger in ("model", "pubsub"):
        return None
    if request.champion is not None and standing.champion not in (None, request.champion):
        return f"it was about champion {request.champion}, and version {standing.champion} serves now"
    quiet = standing.quiet.get(request.trigger)
    if quiet is not None and request.window is not None and request.window.end <= quiet.end:
        return f"window {quiet.key} was judged since, and gave no reason to retrain"
    return None


def decide(
    policy: Retrain, records: Sequence[Recorded], standing: Standing, request: Request, now: datetime
) -> Decision:
    """What becomes of a request.

    Args:
        policy: the declared policy.
        records: the model's requests, this one among them where it was recorded already.
        standing: what there is to know besides.
        request: the request.
        now: the time.

    Returns:
        ``recorded`` where the policy only observes, or does not listen to such a reason; ``withdrawn`` where the reason
        has passed; ``held`` while another request waits for its run or its person, within the cooldown, and where the
        week's budget is spent; else ``suggested`` where a person decides, and ``started`` where none does.
    """
    if request.trigger not in policy.listens_to:
        listed = ", ".join(sorted(policy.listens_to)) or "nothing"
        return Decision("recorded", f"the policy retrains for {listed}, and not for {request.trigger}")
    if policy.mode == "observe":
        return Decision("recorded", "the policy only observes")
    passed = moot(request, standing)
    if passed:
        return Decision("withdrawn", passed)
    ahead = (each for each in records if each.state in ("suggested", "asking", "started"))
    waiting = next((each for each in ahead if each.request.id != request.id), None)
    if waiting:
        what = "its training" if waiting.state == "started" else "a person's answer"
        return Decision("held", f"request {waiting.request.id} waits for {what}, which is for this one too")
    held = _limits(policy, records, standing, now)
    if held:
        return held
    if policy.mode == "suggest":
        return Decision("suggested", "the policy asks a person")
    return Decision("started", "the policy allows it")


def review(
    policy: Retrain, records: Sequence[Recorded], standing: Standing, now: datetime, is_active: IsActive
) -> tuple[Recorded, Decision] | None:
    """The first request of which something else becomes when it is looked at again, and what; None where of none.

    The newest window comes first, for a training for it answers for the others.

    Args:
        policy: the declared policy.
        records: the model's requests.
        standing: what there is to know besides.
        now: the time.
        is_active: whether a run still goes on.
    """
    for each in sorted(records, key=_newest_first):
        decision = _reviewed(policy, records, standing, each, now, is_active)
        if decision and decision != Decision(each.state, each.last.why or "", each.last.until):
            return each, decision
    return None


def _reviewed(
    policy: Retrain,
    records: Sequence[Recorded],
    standing: Standing,
    recorded: Recorded,
    now: datetime,
    is_active: IsActive,
) -> Decision | None:
    """What becomes of a request that is looked at again; None where nothing is to be decided."""
    asked = recorded.state in ("suggested", "asking")
    given_back = recorded.state == "claimed" and recorded.attempts < MAX_ATTEMPTS
    if recorded.state == "started" or asked or given_back:
        if recorded.state == "claimed" and is_active(str(recorded.run)):
            return None
        passed = moot(recorded.request, standing._replace(quiet={}))
        if passed:
            return Decision("withdrawn", passed)
    if recorded.state == "asking" and is_active(str(recorded.last.run)):
        return None
    stopped = recorded.state == "started" and policy.mode == "observe"
    if recorded.state == "held" or asked or given_back or stopped:
        # What a person is to decide stays with the person, also when a quiet window has come since.
        known = standing._replace(quiet={}) if asked else standing
        return decide(policy, records, known, recorded.request, now)
    return None


def _newest_first(recorded: Recorded) -> float:
    window = recorded.request.window
    return -(window.end if window else recorded.steps[0].at).timestamp()


def _limits(policy: Retrain, records: Sequence[Recorded], standing: Standing, now: datetime) -> Decision | None:
    """How the cooldown and the budget hold a request, or None where they do not; of the two the longer."""
    begun = starts(records)
    said_no = [each.last.at for each in records if each.state == "rejected"]
    since = max((*begun, *said_no, *((standing.decided,) if standing.decided else ())), default=None)
    found = []
    if since is not None and since + policy.cooldown > now:
        found.append(Decision("held", f"the cooldown of {_spoken(policy.cooldown)} is on", since + policy.cooldown))
    most = policy.max_per_week
    if most is not None:
        week = sorted(at for at in begun if at + WEEK > now)
        if len(week) >= most:
            why = f"the policy has started {len(week)} trainings in 7 days, of {most} that it may"
            found.append(Decision("held", why, week[-most] + WEEK))
    return max(found, key=lambda each: each.until or now, default=None)


def starts(recorded: Iterable[Recorded]) -> list[datetime]:
    """When trainings were started by the policy, one that was called off before any run had taken it left out."""
    return [
        step.at
        for each in recorded
        for step, following in zip(each.steps, (*each.steps[1:], None), strict=True)
        if step.state == "started" and not (following and following.state == "withdrawn")
    ]


def _spoken(duration: timedelta) -> str:
    hours = duration / timedelta(hours=1)
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours" if hours >= 1 else f"{hours * 60:g} minutes"
