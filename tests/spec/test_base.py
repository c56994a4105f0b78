"""The types that YAML lacks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_mlops.spec.base import Duration, Section, format_duration, parse_duration
from tests.spec.generated import durations


class Wait(Section):
    """Something with a duration."""

    poll: Duration = timedelta(0)


@given(durations)
def test_a_written_duration_reads_back(length: timedelta) -> None:
    assert parse_duration(format_duration(length)) == length


@given(st.text("0123456789smhdw .-", max_size=12))
def test_a_text_is_a_duration_or_a_clear_refusal(text: str) -> None:
    try:
        length = parse_duration(text)
    except ValueError as error:
        assert repr(text) in str(error)
    else:
        assert parse_duration(format_duration(length)) == length >= timedelta(0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("24h", 86400), ("14d", 14 * 86400), ("2w", 14 * 86400), (" 1d 12h ", 129600)],
)
def test_durations_have_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "h", "1", "1.5h", "-1h", "1y", "1h!", "9" * 30 + "w", 60, None, 1.5])
def test_a_duration_without_a_unit_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="duration"):
        Wait(poll=value)


@pytest.mark.parametrize("value", [timedelta(seconds=-1), timedelta(milliseconds=1)])
def test_a_duration_that_could_not_be_written_is_refused(value: timedelta) -> None:
    with pytest.raises(ValidationError, match="whole seconds"):
        Wait(poll=value)


def test_a_section_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Wait().poll = timedelta(1)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Wait(pol="1s")  # type: ignore[call-arg]
