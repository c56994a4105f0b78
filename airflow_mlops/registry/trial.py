"""Whether a candidate on trial holds: from what the servers count, by the rules that are declared. Nothing is changed.

An error rate is told to be too high before the time is up only where chance does not explain it: the lower bound of
Wilson's interval (Probable inference, the law of succession, and statistical inference, JASA 22, 1927) with 95% on that
side lies above the limit. At the end the plain rate counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from airflow_mlops.registry.serving import Serving
from airflow_mlops.spec.stages import Trial

_Z = 1.6449
"""The normal distribution's 95% point."""


class Counted(NamedTuple):
    """What servers have counted of one version, all together."""

    servers: int
    """The servers that have it loaded."""
    requests: int = 0
    errors: int = 0
    compared: int = 0
    disagreements: int = 0
    p99: float | None = None
    """The worst server's, in milliseconds."""


class Standing(NamedTuple):
    """How a trial stands."""

    state: Literal["baking", "held", "broken"]
    """``held``: it has stood the trial. ``broken``: a rule was broken, or nobody could tell."""
    reasons: tuple[str, ...]


def counted(servers: Sequence[Serving], version: str) -> Counted:
    """Add up what the servers say of a version."""
    found = [server.versions[version] for server in servers if version in server.versions]
    tails = [each.p99 for each in found if each.p99 is not None]
    return Counted(
        len(found),
        sum(each.requests for each in found),
        sum(each.errors for each in found),
        sum(each.compared for each in found),
        sum(each.disagreements for each in found),
        max(tails, default=None),
    )


def wilson_lower(hits: int, tries: int) -> float:
    """The least share that still explains so many hits, with 95% confidence; 0 where nothing was tried."""
    if not tries:
        return 0.0
    share, square = hits / tries, _Z * _Z
    middle = share + square / (2 * tries)
    spread = _Z * math.sqrt(share * (1 - share) / tries + square / (4 * tries * tries))
    return max(0.0, (middle - spread) / (1 + square / tries))


def standing(rules: Trial, servers: Sequence[Serving], candidate: str, since: datetime, now: datetime) -> Standing:
    """Say how a trial stands.

    Args:
        rules: how long it lasts, how many requests it needs, and what ends it.
        servers: the servers that are there.
        candidate: the version on trial.
        since: when the trial began.
        now: the time.
    """
    found = counted(servers, candidate)
    tries, what = (found.requests, "requests") if rules.share else (found.compared, "compared rows")
    shares = [
        ("requests failed", found.errors, max(found.requests, found.errors), rules.error_rate),
        ("compared rows were answered otherwise", found.disagreements, found.compared, rules.disagreement),
    ]
    passed = now - since
    over = passed >= rules.bake and tries >= rules.min_requests
    broken = [
        f"{hits:,} of {of:,} {told} ({hits / of:.2%}), and {limit:.2%} is the most"
        for told, hits, of, limit in shares
        if limit is not None and of and (hits / of if over else wilson_lower(hits, of)) > limit
    ]
    if rules.max_p99_ms is not None and found.p99 is not None and over and found.p99 > rules.max_p99_ms:
        broken.append(f"one answer in a hundred took {found.p99:.0f} ms or more, and {rules.max_p99_ms:g} is the most")
    if broken:
        return Standing("broken", tuple(broken))
    if over:
        tail = f", 99% of them within {found.p99:.0f} ms" if found.p99 is not None else ""
        return Standing(
            "held",
            (f"it has stood {tries:,} {what} in {_spoken(passed.total_seconds())}, {found.errors} failed{tail}",),
        )
    if passed >= rules.timeout:
        few = f"only {tries:,} of {rules.min_requests:,} {what} came in {_spoken(passed.total_seconds())}"
        return Standing("broken", (few if found.servers else "no server has loaded it",))
    return Standing("baking", (f"{tries:,} of {rules.min_requests:,} {what} so far",))


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
