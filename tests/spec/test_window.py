"""Windows: half-open calendar pieces in UTC, with keys that read back."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec.window import (
    Grain,
    grain_of,
    key_pattern,
    last_windows,
    parse_key,
    shift,
    window_at,
    window_before,
)

grains: st.SearchStrategy[Grain] = st.sampled_from(get_args(Grain))
zones = st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-14 * 60, 14 * 60))
instants = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC) | zones)
steps = st.integers(-300, 300)


@given(grains, instants)
def test_a_window_holds_its_instant_and_its_key_reads_back(grain: Grain, at: datetime) -> None:
    window = window_at(grain, at)
    assert window.start <= at < window.end
    assert parse_key(grain, window.key) == window
    assert re.fullmatch(key_pattern(grain), window.key)


@given(grains, instants, steps, steps)
def test_shifts_add_up_and_leave_no_gap(grain: Grain, at: datetime, first: int, second: int) -> None:
    window = window_at(grain, at)
    assert shift(grain, shift(grain, window, first), second) == shift(grain, window, first + second)
    assert shift(grain, window, 1).start == window.end
    assert shift(grain, window, 0) == window


@given(grains, instants, st.integers(1, 300))
def test_keys_sort_as_time_does(grain: Grain, at: datetime, later: int) -> None:
    window = window_at(grain, at)
    assert window.key < shift(grain, window, later).key


@given(grains, instants)
def test_the_window_before_is_complete_and_the_newest(grain: Grain, at: datetime) -> None:
    before = window_before(grain, at)
    assert before.end <= at < shift(grain, before, 1).end


@given(grains, instants, st.integers(1, 20))
def test_the_last_windows_end_with_the_window_itself(grain: Grain, at: datetime, count: int) -> None:
    window = window_at(grain, at)
    windows = last_windows(grain, window, count)
    assert len(windows) == count
    assert windows[-1] == window
    assert all(older.end == newer.start for older, newer in pairwise(windows))


@given(grains, st.from_regex(r"\d{4}(-(\d\d|W\d\d|Q\d)(-\d\d(T\d\d)?)?)?", fullmatch=True) | st.text(max_size=10))
def test_a_text_is_a_key_in_its_one_form_or_refused(grain: Grain, text: str) -> None:
    try:
        window = parse_key(grain, text)
    except DataNotFoundError as error:
        assert repr(text) in str(error)
    else:
        assert window.key == text


@pytest.mark.parametrize(
    ("grain", "key", "start", "end"),
    [
        ("hour", "2013-03-01T05", "2013-03-01T05", "2013-03-01T06"),
        ("day", "2012-02-29", "2012-02-29", "2012-03-01"),
        ("week", "2013-W01", "2012-12-31", "2013-01-07"),
        ("week", "2020-W53", "2020-12-28", "2021-01-04"),
        ("month", "2013-12", "2013-12-01", "2014-01-01"),
        ("quarter", "2013-Q4", "2013-10-01", "2014-01-01"),
        ("year", "2013", "2013-01-01", "2014-01-01"),
        ("quarter", "0999-Q1", "0999-01-01", "0999-04-01"),
        ("week", "0999-W02", "0999-01-07", "0999-01-14"),
        ("year", "0999", "0999-01-01", "1000-01-01"),
    ],
)
def test_keys_name_calendar_pieces(grain: Grain, key: str, start: str, end: str) -> None:
    first, last = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    assert parse_key(grain, key) == (first, last, key)


@pytest.mark.parametrize(
    ("grain", "key"),
    [
        ("week", "2013-W53"),
        ("week", "2013-W00"),
        ("day", "2013-02-29"),
        ("day", "9999-12-31"),
        ("month", "2013-13"),
        ("month", "2013-1"),
        ("quarter", "2013-Q5"),
        ("year", "0000"),
        ("year", "9999"),
        ("hour", "2013-01-01T24"),
        ("month", "2013-01 "),
    ],
)
def test_a_key_that_names_nothing_is_refused_with_an_example(grain: Grain, key: str) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        parse_key(grain, key)
    example = str(caught.value.allowed).removeprefix("a key such as ")
    assert parse_key(grain, example).key == example


def test_an_instant_is_read_in_utc() -> None:
    late = datetime(2013, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    assert window_at("day", late).key == "2013-02-01"
    assert window_at("day", late.replace(tzinfo=None)).key == "2013-01-31"


@pytest.mark.parametrize(
    ("schedule", "grain"),
    [("@hourly", "hour"), ("@weekly", "week"), ("@quarterly", "quarter"), ("@annually", "year"), ("0 3 * * 1", "day")],
)
def test_a_preset_has_a_grain_and_all_else_is_daily(schedule: str, grain: Grain) -> None:
    assert grain_of(schedule) == grain
    assert grain_of(None) == "day"
