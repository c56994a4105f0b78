"""Which policy to choose after a replay: the cheapest that is as good as the best, as far as history can tell.

Policies are compared window by window. As good is whose mean lies within one standard error of the best one's (the rule
of Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3): what merely is not
*shown* to be worse may well be, and a few windows show little.

How often chance alone would give a mean difference as large is told beside it, by the exact sign-flip test: if two were
equally good, each window's difference would be as likely to be for the one as for the other (Fisher, The Design of
Experiments, 1935, ch. 21). It needs no spread to be known, and with few windows it says by itself that nothing can be
told: five windows that differ are the fewest from which it can find one in twenty.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from airflow_mlops.registry.replay import Walk

CHANCE = 0.05
"""The chance of a difference at or below which a policy counts as worse."""
FEWEST = math.ceil(-math.log2(CHANCE))
"""The fewest windows with a difference that the test can tell anything from."""
_EXACT = 14
_DRAWS = 1 << _EXACT


class Standing(NamedTuple):
    """How a policy did."""

    policy: str
    mean: float
    """The mean of the metric over the windows compared."""
    spread: float
    """Its standard deviation over them."""
    worst: float
    worst_window: str
    behind: float
    """By how much its mean is worse than the best one's."""
    error: float
    """The standard error of that."""
    differing: int
    """On how many windows it did not have the best one's value."""
    chance: float
    """How often two equally good policies would lie so far apart."""

    @property
    def worse(self) -> bool:
        """Whether history shows it to be worse than the best."""
        return self.chance <= CHANCE

    @property
    def as_good(self) -> bool:
        """Whether it is as good as the best, as far as history can tell."""
        return self.behind <= self.error and not self.worse


class Advice(NamedTuple):
    """What history says for, and how surely."""

    policy: str | None
    """The policy to choose; None where history is too short to tell."""
    reasons: tuple[str, ...]
    """What it did, and what the others did."""
    standings: tuple[Standing, ...]


def sign_flip(differences: Sequence[float]) -> float:
    """The chance of a mean at least this large if each difference were as likely of the other sign; one-sided.

    Exact up to 14 differences that are not 0, else from as many draws as 14 have (with a fixed seed).
    """
    values = [each for each in differences if each]
    if not values:
        return 1.0
    total = math.fsum(values) - 1e-12 * sum(map(abs, values))
    if len(values) <= _EXACT:
        flips = itertools.product((1, -1), repeat=len(values))
        found = [sum(map(lambda sign, value: sign * value, signs, values)) >= total for signs in flips]
        return sum(found) / len(found)
    draw = random.Random(0)  # noqa: S311 - chance, not secrets
    hits = sum(sum(value if draw.random() < 0.5 else -value for value in values) >= total for _ in range(_DRAWS))
    return (hits + 1) / (_DRAWS + 1)


def advise(walks: Sequence[Walk], *, more_is_better: bool, settings: Sequence[str]) -> Advice:
    """Choose among policies.

    Args:
        walks: what each did, over the same windows; of equals the first is preferred.
        more_is_better: which way the metric is.
        settings: the policies that can be chosen; the others are there to compare with.
    """
    sign = 1.0 if more_is_better else -1.0
    whole = [at for at in range(len(walks[0].days)) if all(walk.values[at] is not None for walk in walks)]
    if not whole:
        return Advice(None, ("the metric is not defined on any window for every policy",), ())
    values = {walk.policy: [float(walk.values[at] or 0.0) for at in whole] for walk in walks}
    keys = [walks[0].days[at].window for at in whole]
    choice = [walk for walk in walks if walk.policy in settings]
    best = max(choice, key=lambda walk: sign * fmean(values[walk.policy]))
    standings = {
        walk.policy: _standing(walk.policy, values[walk.policy], values[best.policy], keys, sign) for walk in walks
    }
    told = tuple(standings.values())
    fit = [walk for walk in choice if walk is best or _may_be_as_good(standings[walk.policy])]
    chosen = min(fit, key=lambda walk: (len(walk.attempts), round(walk.cpu, 6)))
    if not any(standing.differing for standing in told if standing.policy in settings):
        same = f"all gave the same models or the same metric on these {len(whole)} windows"
        return Advice(chosen.policy, (f"{same}, and this is the cheapest",), told)
    standing = standings[chosen.policy]
    if chosen is not best and 0 < standing.differing < FEWEST:
        return Advice(
            None,
            (
                f"history is too short: {best.policy} did best (mean {standing.mean + sign * standing.behind:.4f}), "
                f"{chosen.policy} is cheaper (mean {standing.mean:.4f}), and they differ on {standing.differing} "
                f"windows; fewer than {FEWEST} cannot tell a difference from chance",
            ),
            told,
        )
    return Advice(chosen.policy, _reason(chosen, best, choice, standings), told)


def _may_be_as_good(standing: Standing) -> bool:
    return standing.as_good or standing.differing < FEWEST


def _standing(policy: str, values: list[float], best: list[float], keys: list[str], sign: float) -> Standing:
    differences = [sign * (theirs - own) for own, theirs in zip(values, best, strict=True)]
    at = min(range(len(values)), key=lambda index: sign * values[index])
    return Standing(
        policy,
        fmean(values),
        stdev(values) if len(values) > 1 else 0.0,
        values[at],
        keys[at],
        fmean(differences),
        stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0,
        sum(each != 0 for each in differences),
        sign_flip(differences) if fmean(differences) > 0 else 1.0,
    )


def _reason(chosen: Walk, best: Walk, choice: Sequence[Walk], standings: dict[str, Standing]) -> tuple[str, ...]:
    own = standings[chosen.policy]
    trained = len(chosen.attempts)
    parts = []
    if chosen is best:
        parts.append(f"it has the best mean, {own.mean:.4f}, with {_trainings(trained)}")
    else:
        parts.append(
            f"with {_trainings(trained)} its mean of {own.mean:.4f} is {own.behind:.4f} behind {best.policy}, which "
            f"takes {len(best.attempts)}: within one standard error, {own.error:.4f}"
        )
    for walk in choice:
        each = standings[walk.policy]
        if walk in (chosen, best):
            continue
        if not each.as_good:
            parts.append(
                f"{walk.policy} is {each.behind:.4f} behind {best.policy}, beyond its standard error of "
                f"{each.error:.4f} (chance gives that {each.chance:.0%} of the time)"
            )
        elif len(walk.attempts) > trained:
            parts.append(f"{walk.policy} is no better and takes {_trainings(len(walk.attempts))}")
    return tuple(parts)


def _trainings(count: int) -> str:
    return f"{count} training{'' if count == 1 else 's'}"
