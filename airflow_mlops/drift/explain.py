"""What the decision says, in words and numbers that a person can check."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_mlops.drift.profile import ColumnProfile

_NAMED = 5


def number(reference: ColumnProfile, current: ColumnProfile, effect: float, times: float) -> str:
    """How far a column of numbers moved."""
    means = f"mean {reference.mean:.4g} to {current.mean:.4g}"
    return f"{reference.name} moved by {effect:.2f} standard deviations, {chances(times)} ({means})"


def category(reference: ColumnProfile, current: ColumnProfile, effect: float, times: float) -> str:
    """How far a column of categories moved, and which of them the most."""
    return (
        f"{reference.name} moved by {effect:.2f} in Jensen-Shannon distance, {chances(times)}"
        f"{_largest_change(reference, current)}"
    )


def nulls(name: str, shares: tuple[float, float], times: float) -> str:
    """How the share of nulls changed."""
    return f"{name}: nulls went from {shares[0]:.1%} to {shares[1]:.1%}, {chances(times)}"


def steady(name: str, effect: float, floor: float, beyond_chance: bool) -> str:
    """Why a column has not moved."""
    if effect < floor:
        return f"{name}: {effect:.2f}, below {floor:g}{', though more than chance gives' if beyond_chance else ''}"
    return f"{name}: {effect:.2f}, within chance"


def chances(times: float) -> str:
    """How many times the distance is what chance reaches in one window of a hundred."""
    if times >= 1000:
        return "over 1,000 times what chance gives"
    return f"{times:.0f} times what chance gives" if times >= 10 else f"{times:.1f} times what chance gives"


def unchanged(steady: int, unjudged: int, new: Sequence[str] = ()) -> str:
    """The columns of which there is nothing to say, and the names of those that the reference does not have."""
    rest = f", {unjudged} not judged" if unjudged else ""
    if new:
        more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
        rest += f" (new: {', '.join(new[:_NAMED])}{more})"
    return f"{steady} column{'' if steady == 1 else 's'} unchanged{rest}"


def _largest_change(reference: ColumnProfile, current: ColumnProfile) -> str:
    names = dict.fromkeys([*reference.counts, *current.counts])
    shares = {
        name: tuple(side.counts.get(name, 0) / max(side.valid, 1) for side in (reference, current)) for name in names
    }
    if not shares:
        return ""
    name = max(shares, key=lambda each: abs(shares[each][1] - shares[each][0]))
    return f" ({name!r} went from {shares[name][0]:.1%} to {shares[name][1]:.1%})"
