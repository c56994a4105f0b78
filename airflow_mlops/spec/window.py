"""Windows: the calendar pieces that data comes in. A window is half-open, ``[start, end)``, in UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from airflow_mlops.errors import DataNotFoundError

Grain = Literal["hour", "day", "week", "month", "quarter", "year"]

_PRESETS: dict[str, Grain] = {
    "@hourly": "hour",
    "@daily": "day",
    "@weekly": "week",
    "@monthly": "month",
    "@quarterly": "quarter",
    "@yearly": "year",
    "@annually": "year",
}


class Window(NamedTuple):
    """One calendar piece: ``start`` (inclusive) and ``end`` (exclusive) in UTC, and the key it goes by."""

    start: datetime
    end: datetime
    key: str


def grain_of(schedule: str | None) -> Grain:
    """The grain of a schedule preset; ``day`` for everything else."""
    return _PRESETS.get(schedule or "", "day")


def _floor(grain: Grain, at: datetime) -> datetime:
    at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    hour = at.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    return {
        "hour": hour,
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "quarter": day.replace(day=1, month=3 * ((day.month - 1) // 3) + 1),
        "year": day.replace(day=1, month=1),
    }[grain]


def _shift(grain: Grain, start: datetime, count: int) -> datetime:
    if grain in ("hour", "day", "week"):
        return start + count * {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}[grain]
    months = count * {"month": 1, "quarter": 3, "year": 12}[grain]
    total = start.year * 12 + start.month - 1 + months
    return start.replace(year=total // 12, month=total % 12 + 1)


# By isoformat, which fills years up to four digits; strftime leaves that to the C library.
_FORMATS: dict[Grain, Callable[[datetime], str]] = {
    "hour": lambda at: at.isoformat()[:13],
    "day": lambda at: at.isoformat()[:10],
    "week": lambda at: "{:04}-W{:02}".format(*at.isocalendar()),
    "month": lambda at: at.isoformat()[:7],
    "quarter": lambda at: f"{at.year:04}-Q{(at.month + 2) // 3}",
    "year": lambda at: f"{at.year:04}",
}

_PATTERNS: dict[Grain, str] = {
    "hour": r"\d{4}-\d{2}-\d{2}T\d{2}",
    "day": r"\d{4}-\d{2}-\d{2}",
    "week": r"\d{4}-W\d{2}",
    "month": r"\d{4}-\d{2}",
    "quarter": r"\d{4}-Q[1-4]",
    "year": r"\d{4}",
}
_EXAMPLES: dict[Grain, str] = {grain: write(datetime(2013, 3, 1, 5)) for grain, write in _FORMATS.items()}


def window_at(grain: Grain, at: datetime) -> Window:
    """The window that holds an instant. A naive instant is taken as UTC."""
    start = _floor(grain, at)
    return Window(start, _shift(grain, start, 1), _FORMATS[grain](start))


def window_before(grain: Grain, at: datetime) -> Window:
    """The newest window that is complete at an instant."""
    return shift(grain, window_at(grain, at), -1)


def shift(grain: Grain, window: Window, count: int) -> Window:
    """The window ``count`` steps later (earlier when negative)."""
    return window_at(grain, _shift(grain, window.start, count))


def parse_key(grain: Grain, key: str) -> Window:
    """Read a window's key, such as ``2013-03`` for a month.

    Raises:
        DataNotFoundError: when the key is not of the grain's form.
    """
    if re.fullmatch(_PATTERNS[grain], key):
        try:
            if grain == "week":
                start = datetime.strptime(f"{key}-1", "%G-W%V-%u")
            elif grain == "quarter":
                start = datetime(int(key[:4]), 3 * int(key[-1]) - 2, 1)
            else:
                form = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}[grain]
                start = datetime.strptime(key, form)
            window = window_at(grain, start)
            # Python before 3.13 reads week 53 of a year with 52 weeks as the first week of the next.
            if window.key == key:
                return window
        except (ValueError, OverflowError):
            pass
    raise DataNotFoundError(
        f"{key!r} is not a window of one {grain}",
        allowed=f"a key such as {_EXAMPLES[grain]}",
        fix="give the window in that form, or declare another `data.window`",
    )


def window_of_key(key: str) -> Window:
    """The window of a key of any grain; no two grains write keys of one form.

    Raises:
        DataNotFoundError: when it is no window's key.
    """
    for grain, pattern in _PATTERNS.items():
        if re.fullmatch(pattern, key):
            return parse_key(grain, key)
    raise DataNotFoundError(f"{key!r} is no window's key", allowed=", ".join(_EXAMPLES.values()))


def last_windows(grain: Grain, window: Window, count: int) -> tuple[Window, ...]:
    """The ``count`` windows that end with this one, oldest first."""
    return tuple(shift(grain, window, step) for step in range(1 - count, 1))


def key_pattern(grain: Grain) -> str:
    """A regular expression that matches the grain's keys."""
    return _PATTERNS[grain]
